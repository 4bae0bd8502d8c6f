"""Real conda channels for tests and demos, made on this machine without any channel to copy from.

From the command line: ``python -m tests.channels small|demo|full|synthetic|index|serve OUT``.

| file | what it answers |
|---|---|
| ``building`` | which packages make up the small, demo and full channels |
| ``stamp`` | is a channel in a folder complete, and made by this kit? |
| ``conda_package``, ``channel_index`` | archives; repodata.json(.zst), shards, channeldata |
| ``sample_packages``, ``tiny_elf`` | generated packages for the odd corners of the format |
| ``cpython_package``, ``debian_packages``, ``wheel_packages`` | packages made of real software |
| ``synthetic_repodata`` | records in the number of a large public channel, for benchmarks |
| ``simple_index`` | a small Python package index of real wheels |
| ``server`` | serve all this, well or with faults |
| ``fixtures`` | the same for pytest |
"""
