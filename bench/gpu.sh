#!/usr/bin/env bash
# Measures the engine on a machine with a GPU and without network: builds the native module, runs the tests marked
# `gpu` and the benches, and writes their figures to $OUT; a short table comes last.
#
#   OUT=DIR [STEPS="kernels stages ..."] [SECONDS_IN_ALL=480] bench/gpu.sh [WHEELS]
#
# STEPS names what to run after the build, always in this order; by default all but the last:
#   tests       those marked `gpu`
#   kernels     the fused ops
#   stages      synthesis and distillation steps
#   frozen      augmentation, filter and teacher beside diffusers, open_clip and eager torch in fp32
#   tensorrt    whether TensorRT's engines run here, and how fast; where they do not, the log says why
#   production  Stable Diffusion 1.5's and ViT-B/32's size: ours in fp16 and bf16 (and TensorRT's) beside eager fp16
#   compiled    the same, both sides by torch.compile, one batch and number of steps: minutes
# Where the time is not enough for all, the later ones go into calls of their own.
#
# Needs Python >= 3.11 with torch >= 2.11, triton >= 3.6, numpy, torchvision, timm, onnx, onnxscript and transformers,
# cmake, g++ >= 12 (for C++20 and _Float16), and in the folder WHEELS (default: wheels) those of
# bench/gpu-requirements.txt that Python lacks. Wheels too large to be brought at once may come in pieces, as
# `split -b 40M X.whl X.whl.part-` makes them. ALLOW_CPU=1 rehearses it without a GPU. Takes SECONDS_IN_ALL at most
# (8 minutes by default): a step gets what is left, and one that is ended leaves the rows that it has measured. Ends
# with 0 where everything passed.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:?set OUT to a folder for the results}
wheels=${1:-wheels}
python=${PYTHON:-python3}
build=$PWD/build/gpu
mkdir -p "$out" "$build"
export PYTHONPATH="$build/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

steps=${STEPS:-tests kernels stages frozen tensorrt production}
for name in $steps; do
    [[ " tests kernels stages frozen tensorrt production compiled " == *" $name "* ]] ||
        { echo "gpu.sh: STEPS: no '$name'; its header lists them" >&2; exit 2; }
done
deadline=$((SECONDS + ${SECONDS_IN_ALL:-480}))

step() {  # NAME SECONDS COMMAND...: runs it under its time limit and the deadline, keeps its log, remembers a failure
    local name=$1 limit=$2 start=$SECONDS code=0 left=$((deadline - SECONDS))
    shift 2
    : >"$out/$name.log"
    if ((left > 0)); then
        timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/$name.log" 2>&1 || code=$?
    else
        code="no time left"
    fi
    printf '%-10s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ "$code" = 0 ] && echo passed || echo "failed ($code)")" \
        | tee -a "$out/steps.txt"
    [ "$code" = 0 ] && return
    tail -n 15 "$out/$name.log"
    failed=1
    return 1
}

wanted() {  # NAME: whether STEPS has it
    [[ " $steps " == *" $1 "* ]]
}

install_wheels() {
    local first
    for first in "$wheels"/*.whl.part-aa; do
        [ -e "$first" ] && cat "${first%aa}"* >"${first%.part-aa}"
    done
    ls "$wheels"/*.whl >/dev/null 2>&1 || return 0
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$build/site" "$wheels"/*.whl
}

build_native() {
    cmake -S . -B "$build/native" -DSKBUILD=ON -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
        -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" &&
        cmake --build "$build/native" --parallel && cp "$build"/native/_native*.so kernels/
}

export -f install_wheels build_native
export wheels python build

require_device() {
    "$python" - <<'PY'
import os, sys, torch
if not torch.cuda.is_available() and not os.environ.get("ALLOW_CPU"):
    sys.exit("gpu.sh: torch sees no GPU here; ALLOW_CPU=1 rehearses on the CPU")
PY
}

failed=0
: >"$out/steps.txt"
require_device || exit 2
step wheels 60 bash -c install_wheels || exit 1
step build 180 bash -c build_native || exit 1
small=()
[ -n "${ALLOW_CPU:-}" ] && small=(--prior unet-16m --batches 1 --steps 1)
mapfile -t gpu_tests < <(grep -rl --include='test_*.py' 'mark.gpu' tests)
# Only our plugins: others that are installed there may fail with this pytest, or warn.
wanted tests && step tests 180 env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -p pytest_timeout -W default \
    -q -m gpu "${gpu_tests[@]}"
wanted kernels && step kernels 240 "$python" -m bench kernels --csv "$out/kernels.csv"
wanted stages && step stages 180 "$python" -m bench stages --csv "$out/stages.csv"
wanted frozen && step frozen 180 "$python" -m bench stages --stage augment,filter,teacher --csv "$out/frozen.csv"
wanted tensorrt && step tensorrt 120 "$python" -m bench tensorrt --csv "$out/tensorrt.csv"
wanted production && step production 300 "$python" -m bench production --seconds 90 "${small[@]}" --csv "$out/production.csv"
wanted compiled && step compiled 400 "$python" -m bench production --ways eager,compiled --batches 16 --steps 4 \
    --seconds 180 "${small[@]}" --csv "$out/compiled.csv"

echo
cat "$out/steps.txt"
wanted tests && tail -n 3 "$out/tests.log"
for name in $steps; do grep -E '^\||does not run here|here it is|left out' "$out/$name.log"; done
exit $failed
