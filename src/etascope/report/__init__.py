"""Everything that shows a study: views collect what is shown, the other modules draw it.

`etascope.report` names this package and, as `es.report(study, "a.html")`, the public function.
Importing any module of a package binds the package's name in its parent, over whatever stood
there, so the package itself can be called and does what the function does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etascope.study import Study


class _CallablePackage(ModuleType):
    def __call__(self, study: Study, path: str | os.PathLike[str]) -> Path:
        from etascope.report.html import report

        return report(study, path)


sys.modules[__name__].__class__ = _CallablePackage
