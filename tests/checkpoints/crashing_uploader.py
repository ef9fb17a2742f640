"""The uploader, killed once at a store operation: python ... PLAN.json DESCRIPTOR STORE_URL...

The plan says `operation`, `when`, and `log`, a file that says which operation it was; once that
file exists, nothing crashes any more.
"""

import json
import socket
import sys
from pathlib import Path

from checkpoints.places import only
from checkpoints.store import open_store
from checkpoints.uploader import serve
from tests.checkpoints.crashes import CrashingStore

if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    store, log = open_store(sys.argv[3]), Path(plan["log"])
    if not log.exists():
        store = CrashingStore(store, operation=plan["operation"], when=plan["when"], log=log)
    serve(socket.socket(fileno=int(sys.argv[2])), only(store))
