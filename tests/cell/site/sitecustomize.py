"""Have SkyServe's controller load the cell's plugin, too; other processes of SkyPilot do anyway.

Python imports this at its start wherever the cell's environment is. The controller starts others by
multiprocessing, which know by the variable whose children they are.
"""

import os
import sys

_MARK = "CELL_IN_SERVICE"

if "sky.serve.service" in sys.orig_argv:
    os.environ[_MARK] = "1"
if os.environ.get(_MARK) and {"sky.serve.service", "--multiprocessing-fork"} & set(sys.orig_argv):
    from sky.server import plugins

    plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER))
