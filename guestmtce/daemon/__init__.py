"""What both daemons need to live on a host.

Warnings are for developers, who see them with `python -X dev`. An environment that makes errors of them
(PYTHONWARNINGS) would stop a daemon over a library that another one imports.
"""

import sys
import warnings

if not sys.flags.dev_mode:
    warnings.simplefilter("ignore")
