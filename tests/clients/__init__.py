"""Stand-ins for conda, micromamba and conda-lock, and the real programs where they are on PATH.

Neither conda nor micromamba can be installed from the package indexes that the tests reach, so
`stand_ins` imitates them on py-rattler, with the settings and the rules of these versions:

==================  ==============================================================================
conda 26.7          `Conda`: rattler solver, pip beside Python, flexible channel priority,
                    `repodata.json.zst` and then `repodata.json` with ETag and If-Modified-Since,
                    explicit lists with md5 or `sha256:`, `environment.yml` with a pip part,
                    `nodefaults` asked for as a channel of that name
micromamba 2.8      `Micromamba`: pip beside Python, strict channel priority, explicit lists
                    in their own order, `*-lock.yml` (version 1, category main, one platform), pip
                    parts by the prefix's own `python -m pip install --no-deps`
conda-lock 4.0      `CondaLock`: reads and renders with conda-lock's own library, creates with the
                    stand-in for conda, pip parts by the `pip` that is first on PATH
==================  ==============================================================================

What they stand in for: which requests are made with which headers, which packages are asked for,
how the files are read, and with which checks packages are installed. Not imitated: the solvers
themselves (both are rattler here), link scripts, and all that is not about creating environments.
"""
