"""The node agent, `condastore sync`: keeps environments as folders on a machine without the server.

wanted.py    what should be there, and what is to be done about it: decisions
server.py    asks the server
folder.py    what lies on the disk
in_use.py    which folders running processes need
sync.py      one round of it, and the loop
"""
