"""`python -m guestmtce` is the command guestmtce."""

import sys

from guestmtce.cli.main import main

sys.exit(main())
