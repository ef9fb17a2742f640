#!/bin/bash
# Build the home of a node's user at the path that it will have: venvs hold absolute paths. Run in a
# mount namespace of its own. Reads: IMAGE NODE_HOME UV RUNTIME_PYTHON DEV_PYTHON DEV_SITE REQUIREMENTS WHEEL_HASH
set -euo pipefail
mount --make-rprivate /
mkdir -p "$NODE_HOME"; mount --bind "$IMAGE/home" "$NODE_HOME"; cd "$NODE_HOME"
mkdir -p .local/bin .sky/wheels .ssh
cp -L "$UV" .local/bin/uv
uv() { "$NODE_HOME/.local/bin/uv" --no-config "$@"; }

# SkyPilot's own environment on nodes; with everything in it, its `uv pip install`s find nothing to do.
uv venv -q --seed skypilot-runtime --python "$RUNTIME_PYTHON"
# shellcheck disable=SC2086
VIRTUAL_ENV=$PWD/skypilot-runtime uv pip install -q --link-mode=copy --compile-bytecode $REQUIREMENTS
# SkyPilot patches Ray on each node, and Python then compiles what was patched: done here, sealed.
HOME=$PWD unshare --net skypilot-runtime/bin/python -c 'from sky.skylet.ray_patches import patch; patch()' >/dev/null
skypilot-runtime/bin/python -m compileall -q skypilot-runtime/lib/python3.*/site-packages/{ray,sky_templates}
# Its users' environment, which it would create on each start.
uv venv -q --seed --relocatable --system-site-packages sky-user-env --python "$RUNTIME_PYTHON"
echo "$WHEEL_HASH" >.sky/wheels/current_sky_wheel_hash

# For training: what the project's environment has, by a path line. Site files there are not read,
# so an editable install is not seen, and what is installed here comes first.
uv venv -q --seed orchestrate-env --python "$DEV_PYTHON"
echo "$DEV_SITE" >"$(echo orchestrate-env/lib/python3.*/site-packages)/project.pth"
chown -R 1000:1000 .
