"""`python -m guestmtce` is the command guestmtce."""

import sys

from guestmtce.cli import main

sys.exit(main())
