"""LatentWire: one compressed message that different language models can read."""

import os
import sys

if sys.platform == "darwin":  # what MPS cannot do, the CPU does; torch looks at this only while it is imported
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"
