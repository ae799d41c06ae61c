#!/usr/bin/env bash
# Builds the package with its CUDA kernels emulated on the CPU and runs pytest against it: run.sh PYTHON [pytest arguments].
# `make test-emulated` calls it; no GPU is needed, only the headers of the CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
shift
build=build/emulated
cmake -S . -B $build -G Ninja -DPYPOSEEXT_CUDA=EMULATED -DSKBUILD_PROJECT_VERSION=0 -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" ${PYPOSEEXT_CMAKE_ARGUMENTS:-} > $build.log || { cat $build.log; exit 1; }
cmake --build $build
# A copy of the package beside the tests, so that neither the installed package nor its kernels are touched.
rm -rf $build/site
mkdir -p $build/site
cp -r pyposeext tests pyproject.toml $build/site
rm -f $build/site/pyposeext/_C*.so
cp $build/_C*.so $build/site/pyposeext/
# Python reads this after the import hook of an editable install, which would lead back to the ordinary kernels.
echo "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'ScikitBuild' not in type(finder).__name__]" > $build/site/sitecustomize.py
cd $build/site
PYPOSEEXT_EMULATED=1 PYTHONPATH=$PWD "$python" -c "from pyposeext import _C; assert _C.build_info()['cuda_toolkit'] == 'emulated on the CPU', _C.__file__"
PYPOSEEXT_EMULATED=1 PYTHONPATH=$PWD "$python" -m pytest "$@"
