"""`python -m benchmarks.model`."""

from __future__ import annotations

import sys

from benchmarks.model.report import main

sys.exit(main())
