"""What is in ``inside`` talks to a loopback Hub, whose address has to be known before anything of Hugging Face is
imported. So it is collected by a pytest of its own only, which :mod:`tests.hub.test_in_a_process_of_its_own` starts.
"""

from __future__ import annotations

import os

collect_ignore = [] if "ULE_HF_LOOPBACK_HUB" in os.environ else ["inside"]
