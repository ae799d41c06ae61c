"""`python -m pyposeext` is the command `pyposeext`."""

from __future__ import annotations

import sys

from pyposeext.cli.main import main

sys.exit(main())
