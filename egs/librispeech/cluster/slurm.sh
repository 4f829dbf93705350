#!/bin/bash
# LibriSpeech on several nodes: sbatch --nodes 4 egs/librispeech/cluster/slurm.sh [bin/train options]
#SBATCH --job-name=sumix-librispeech
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@120

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start with sbatch from the root of the project}"

config=${CONFIG:-egs/librispeech/conf/large_960h.yaml}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # one a line
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node do not meet

# The papers' 600 s of audio a step, over 16 GPUs or a number that divides 16.
# One torchrun a node; each starts a process for each of its GPUs. A process that dies is started again with all the
# others, from the last checkpoint. The rendezvous lives on the first node.
srun --kill-on-bad-exit=1 .venv/bin/torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node gpu --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "${hosts%%$'\n'*}:$port" \
  bin/train --config "$config" --train.step_batches 16 --data.max_duration 37.5 "$@" &
training=$!

# Two minutes before the end of its time, or when it is preempted, training is told to save and end (torchrun gives it
# 30 seconds), and the job goes back into the queue: it goes on in the same folder. Errors do not come again.
taken_away=
trap 'taken_away=1; kill -TERM "$training"' USR1 TERM
status=0
wait "$training" || status=$?
if [ -n "$taken_away" ]; then
  wait "$training" || status=$? # the first wait was ended by the signal
  if [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
