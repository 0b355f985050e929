#!/bin/sh
# Show that one build serves several versions of torch: the module built against the newest is imported, and passes the
# op tests, under an older one in an environment of its own.
#   sh tests/compat.sh BUILD_PYTHON [TORCH_VERSION]
set -eu
build_python=$1
version=${2:-2.12.0}
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/build/compat-$version
packages="numpy pillow safetensors tqdm tyro matplotlib pytest hypothesis scikit-learn"
if [ ! -e "$folder/ready" ]; then
    "$build_python" -m venv "$folder"
    # The older torch is not the one constraints.txt pins; everything else is.
    grep -v '^torch==' "$root/constraints.txt" >"$folder/constraints.txt"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "torch==$version"
    # shellcheck disable=SC2086
    "$folder/bin/pip" install --quiet --disable-pip-version-check -c "$folder/constraints.txt" $packages
    touch "$folder/ready"
fi
cd "$root"
PYTHONPATH=$root "$folder/bin/python" - <<'EOF'
import torch
import gan_fast
from gan_fast import extension

info = extension.build_info()
assert info, extension.load_error
print(f"built with torch {info['torch']}, running under torch {torch.__version__}")
print(gan_fast.info())
EOF
PYTHONPATH=$root "$folder/bin/python" -m pytest -q -p no:cacheprovider tests/ops tests/nn tests/test_backends.py
