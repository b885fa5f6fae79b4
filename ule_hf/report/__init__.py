"""Pictures of a comparison and of its models: charts, walls, maps of student and teacher, a page, a demo.

`saliency` says where a model looks, `pictures` draws it, `explain` does both for images of your own, `walls` for a
comparison's test images, `objects` knows where the object lies; `runs` reads results, `charts` draws them, `page`
puts all into one HTML file; `demo` is `explain` in the browser.
"""

from __future__ import annotations

from importlib.util import find_spec

from ule_hf.errors import UleError

for _package in ("matplotlib", "captum"):
    if find_spec(_package) is None:
        raise UleError(f"pictures need {_package}; install it with: pip install 'ule_hf[report]'")
