#!/bin/bash
# Start a Ray cluster on the nodes of a Slurm job, and run a generation on it:
#   sbatch --nodes 4 deploy/slurm.sh my-recipe.yaml /shared/bank 10000
# To continue, submit it again: committed shards are never generated twice. Slurm sends SIGTERM 10 minutes before
# the time limit, so that the workers can finish their shards.
#SBATCH --job-name=dda-generate
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --signal=B:TERM@600
set -euo pipefail
recipe=$1 bank=$2 shards=$3

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --block &
sleep 15
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --address="$address" --block &
fi
sleep 15

python -m engine.generate --ray "$address" --recipe "$recipe" --out "$bank" --shards "$shards" --resume &
generation=$!
trap 'kill -TERM "$generation"' TERM
wait "$generation" || wait "$generation"  # the first wait returns when the signal arrives
