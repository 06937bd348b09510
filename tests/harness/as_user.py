"""Run the program as another user: ``python -m tests.harness.as_user UID FOLDER COMMAND ...``.

FOLDER becomes the working directory, and is removed. All modules are imported first, since the
user may not be allowed to read them.
"""

import importlib
import os
import pkgutil
import sys

import reconciler
from reconciler.cli import main

if __name__ == "__main__":
    user, folder, *arguments = sys.argv[1:]
    for module in pkgutil.walk_packages(reconciler.__path__, "reconciler."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.mkdir(folder)  # noqa: PTH102
    os.chdir(folder)
    os.rmdir(folder)  # noqa: PTH106
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    sys.argv = ["reconciler", *arguments]
    main()
