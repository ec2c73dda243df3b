#!/usr/bin/env bash
# Test and measure the engine on a bare GPU machine without network, in parts ordered by value. Each part has its own
# time limit. If a part fails or runs out of time, the summary names it and the next part runs.
#
#   OUT=DIR [COMMIT=HASH] [PARTS="smoke tests ..."] [SECONDS_IN_ALL=480] bench/gpu.sh [WHEELS]
#
# PARTS names the parts to run after the set-up, always in this order. The default is all but the last three.
#   smoke       separate checks of the code that needs a GPU: values, launches, host waits, graphs (bench/smoke)
#   tests       the tests marked `gpu`, in eight processes if pytest-xdist is installed
#   stages      synthesis and distillation steps
#   run         the whole loop with the default recipe, without a test set
#   generate    a bank with overlap off and on; fails if the shards differ
#   production  Stable Diffusion 1.5 and ViT-B/32 size: ours in fp16 and bf16, baselines eager in fp16
#   kernels     the fused ops
#   frozen      augmentation, filter and teacher against diffusers, open_clip and eager torch in fp32
#   tensorrt    whether TensorRT engines run here, and how fast; otherwise the log gives the reason
#   compiled    production with torch.compile on both sides, at one batch size and number of steps; takes minutes
#
# The script writes two files to $OUT. results.tar.gz is renewed after each part, so that an interrupted call keeps its
# results. summary.txt, at most 11 KB, is also printed last. Set COMMIT for the rows if the folder has no .git.
# SECONDS_IN_ALL limits the total time and cuts off a part that exceeds it. The exit code is 0 if all parts passed.
#
# Requires Python >= 3.11 with torch >= 2.11, the packages that bench/gpu-requirements.txt describes, and the wheels of
# that file in the folder WHEELS (default: wheels). The native module may be in that folder or in kernels/, as
# _native*.so for this Python; otherwise it is built with cmake and g++ >= 12. A wheel that is too large to copy may be
# split into pieces with `split -b 40M X.whl X.whl.part-`. build/gpu keeps installed and built files for the next call.
# ALLOW_CPU=1 rehearses without a GPU, with small sizes and an additional part:
#   interpreted  the Triton kernels in Triton's interpreter; with Triton 3.6 it needs numpy < 2.4
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

known=(smoke tests stages run generate production kernels frozen tensorrt compiled interpreted)
declare -A limit=([setup]=150 [smoke]=150 [tests]=120 [stages]=100 [run]=120 [generate]=100 [production]=150
    [kernels]=180 [frozen]=180 [tensorrt]=120 [compiled]=300 [interpreted]=240)
out=${OUT:?set OUT to a folder for the results}
parts=${PARTS:-${known[*]:0:7}${ALLOW_CPU:+ interpreted}}
for name in $parts; do
    [[ " ${known[*]} " == *" $name "* ]] || { echo "gpu.sh: PARTS has '$name'; its header lists them" >&2; exit 2; }
done
deadline=$((SECONDS + ${SECONDS_IN_ALL:-480}))

wheels=${1:-wheels}
python=${PYTHON:-python3}
build=$PWD/build/gpu
results=$build/results
COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
SKIPPED=77  # exit code of a part that does not apply here
export wheels python build results COMMIT SKIPPED
export PYTHONPATH="$build/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 ENGINE_CACHE=$build/engines
rm -rf "$results"
mkdir -p "$out" "$results"

rehearsal() { [ -n "${ALLOW_CPU:-}" ]; }
rehearsal && export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # on a busy machine, threads wait long for each other

require_device() {
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || rehearsal ||
        { echo "torch sees no GPU here; ALLOW_CPU=1 rehearses on the CPU"; return 1; }
}

install_wheels() {
    local first
    for first in "$wheels"/*.whl.part-aa; do
        [ -e "$first" ] && cat "${first%aa}"* >"${first%.part-aa}"
    done
    ls "$wheels"/*.whl >/dev/null 2>&1 || return 0
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$build/site" \
        "$wheels"/*.whl
}

find_or_build_native() {
    "$python" -c 'import kernels' 2>/dev/null && return
    cp "$wheels"/_native*.so kernels/ 2>/dev/null && "$python" -c 'import kernels' && return
    cmake -S . -B "$build/native" -DSKBUILD=ON -DCMAKE_BUILD_TYPE=Release \
        -DPython_EXECUTABLE="$(command -v "$python")" -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" &&
        cmake --build "$build/native" --parallel && cp "$build"/native/_native*.so kernels/ &&
        "$python" -c 'import kernels'
}

part_setup() {
    require_device && install_wheels || return
    "$python" -m bench.wheels >"$results/missing.txt"  # a part that needs one of them fails; the others run
    "$python" -m pip list >"$results/packages.txt" 2>/dev/null
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.used --format=csv \
        >"$results/nvidia-smi.csv" 2>/dev/null
    find_or_build_native
}

part_smoke() { "$python" -m bench smoke --out "$results/smoke"; }

part_tests() {
    local files
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark.gpu' tests)
    run_tests -m gpu "${files[@]}"
}

part_interpreted() {
    "$python" -c 'import numpy, sys; sys.exit(tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4))' ||
        { echo "needs numpy < 2.4"; return "$SKIPPED"; }
    run_tests -k "triton and not compiled" tests/kernels/bn_stats/test_triton.py \
        tests/kernels/kd_loss/test_kd_loss.py tests/kernels/crop_flip/test_crop_flip.py
}

run_tests() {  # ARGUMENTS...: in several processes if pytest-xdist is installed
    local processes=8 several=()
    rehearsal && processes=$(nproc)
    "$python" -c 'import xdist' 2>/dev/null && several=(-p xdist -n "$processes")
    # Load only our plugins: others on that machine may fail or warn with this pytest.
    export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
    "$python" -m pytest -p pytest_timeout --timeout 60 "${several[@]}" -W default -v "$@"
}

stages() {  # NAME ARGUMENTS...
    local name=$1 small=()
    shift
    rehearsal && small=(--seconds 0.1 --batch 8)
    "$python" -m bench stages --csv "$results/$name.csv" "$@" "${small[@]}"
}

part_stages() { stages stages; }
part_frozen() { stages frozen --stage "$(rehearsal && echo teacher || echo augment,filter,teacher)"; }

part_run() {
    local small=() code=0
    rehearsal && small=(--schedule.init_batches 1 --schedule.rounds 1 --schedule.kd_steps 4 --synthesize.batch_size 16
        --synthesize.warmup_steps 2 --augment.variations 2 --distill.warmup_steps 0)
    rm -rf "$build/run"
    "$python" -m engine.run --out "$build/run" --feed.kind torch --evaluate.data null "${small[@]}" || code=$?
    cp "$build/run/summary.json" "$results/run.json"
    return $code
}

part_generate() {
    local overlap threads small=()
    for overlap in false true; do
        # On a CPU, overlapping steps divide the threads, and a different number of threads rounds differently.
        threads=$([ $overlap = true ] && echo 2 || echo 1)
        rehearsal && small=(--compute.threads "$threads" --synthesize.batch_size 16 --synthesize.warmup_steps 2
            --augment.variations 2)
        rm -rf "$build/bank"
        "$python" -m engine.generate --out "$build/bank" --shards 6 --compute.overlap $overlap "${small[@]}" || return
        (cd "$build/bank" && sha256sum ./*.tar) >"$results/overlap-$overlap.sha256" || return
    done
    diff "$results/overlap-false.sha256" "$results/overlap-true.sha256" ||
        { echo "the shards differ with overlap off (<) and on (>)"; return 1; }
}

production() {  # NAME ARGUMENTS...
    local name=$1 small=()
    shift
    rehearsal && small=(--stage augment --prior unet-16m --batches 1 --steps 1 --baseline fp32)  # fp16 crawls on a CPU
    "$python" -m bench production --csv "$results/$name.csv" "$@" "${small[@]}"
}

part_production() { production production --ways eager --batches 16,1 --steps 1,4 --seconds 30; }

part_kernels() {
    local size=(--seconds 0.5)
    rehearsal && size=(--seconds 0.05 --no-inductor)
    "$python" -m bench kernels --csv "$results/kernels.csv" "${size[@]}"
}

part_tensorrt() { "$python" -m bench tensorrt --csv "$results/tensorrt.csv"; }

part_compiled() {
    rehearsal && { echo "needs a GPU: a CPU compiles for too long"; return "$SKIPPED"; }
    production compiled --ways eager,compiled --batches 16 --steps 4 --stage augment --seconds 150
}

run_part() {  # NAME: runs a part within its limit and the deadline, keeps its log, and renews the archive
    local name=$1 start=$SECONDS code=0 result left=$((deadline - SECONDS)) log=$results/$1.log
    if ((left > 0)); then
        ((limit[$name] < left)) && left=${limit[$name]}
        timeout --kill-after=5 "$left" bash -c "part_$name" >"$log" 2>&1 || code=$?
    else
        code="no time left"
    fi
    case $code in
        0) result=passed ;;
        "$SKIPPED") result="skipped: $(tail -n 1 "$log")" ;;
        *) result="failed ($code)" && failed+=("$name") ;;
    esac
    printf '%-11s %4d s  %s\n' "$name" $((SECONDS - start)) "$result" | tee -a "$results/parts.txt"
    pack
}

pack() {
    local log
    for log in "$results"/*.log; do  # a very long log must not keep the archive from coming back
        [ "$(stat -c %s "$log")" -gt 1000000 ] && tail -c 1000000 "$log" >"$log.end" && mv "$log.end" "$log"
    done
    summary >"$results/summary.txt"
    tar czf "$out/.renewed" -C "$build" results && mv "$out/.renewed" "$out/results.tar.gz"
    cp "$results/summary.txt" "$out/summary.txt"
}

summary() {  # the most important lines first, each kind within its share of the 11 KB
    {
        cat "$results/parts.txt"
        sed 's/^/missing: /' "$results/missing.txt" | lines 150 600
        for name in "${failed[@]}"; do
            echo "-- $name failed:"
            grep -ohE "ModuleNotFoundError: No module named '[^']+'" "$results/$name.log" | sort -u |
                sed 's/$/; bring its wheel/' | lines 150 300
            tail -n 6 "$results/$name.log" | lines 200 700
        done | lines 200 2100
        grep -hE '^(OK|SKIP|FAIL) ' "$results/smoke.log" | lines 900 3400
        grep -hE '^FAILED|^ERROR|^\[gw.* FAILED' "$results/tests.log" | lines 170 1200
        tail -qn 1 "$results/tests.log" "$results/interpreted.log"
        for name in "${known[@]:2}"; do
            grep -hE '^\| |does not run here|here it is|left out' "$results/$name.log" | lines 170 2200
        done
    } 2>/dev/null | lines 1000 11000
}

lines() {  # WIDTH BYTES: cut lines at WIDTH and print the first ones that fit in BYTES
    cut -b "-$1" | LC_ALL=C awk -v left="$2" '{ left -= length($0) + 1; if (left < 0) exit; print }'
}

for name in $(compgen -A function); do export -f "${name?}"; done
failed=()
run_part setup
if [ ${#failed[@]} = 0 ]; then
    for name in "${known[@]}"; do
        [[ " $parts " == *" $name "* ]] && run_part "$name"
    done
fi
echo
cat "$out/summary.txt"
[ ${#failed[@]} = 0 ]
