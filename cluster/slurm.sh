#!/bin/bash
#SBATCH --job-name=sibcl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sibcl-%j.log
#
# Runs a study on the nodes of one allocation; see README.md. From the top folder, with a folder all nodes see:
#   sbatch cluster/slurm.sh --scale paper --storage /shared/sibcl
# Two minutes before the time is up the study is stopped, and the job queued again to continue. Whoever cancels the
# job stops the study for good. The exit code is the study's.
set -euo pipefail

[[ -d .venv/bin ]] && export PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN PYTHONUNBUFFERED=1
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') # reaches the nodes by the environment
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID                                   # of this job alone; sockets need it short

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
export RAY_ADDRESS="${HEAD_IP:-$(hostname -I | cut -d " " -f 1)}:$port" # HEAD_IP: where the first network is not it

# Other jobs, and several parts of Ray, may share a machine: no port is a fixed one.
free_ports=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
mkdir -p "$RAY_TMPDIR"
env -u RAY_ADDRESS ray start --head --block --num-cpus=0 --num-gpus=0 --include-dashboard=false \
    --node-ip-address="${RAY_ADDRESS%:*}" --port="$port" --ray-client-server-port="$(free_port)" \
    "${free_ports[@]}" >"$RAY_TMPDIR/head.log" 2>&1 &
head=$!
workers='' study='' again='' interrupted=''

# shellcheck disable=SC2329 # called by traps, as is stop
finish() {
    code=$?
    trap - EXIT
    # shellcheck disable=SC2086 # those that were started
    kill $workers $head 2>/dev/null || true
    wait
    srun rm -rf "$RAY_TMPDIR" || true
    [[ -n $again && $code -ge 128 ]] && scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
}
# shellcheck disable=SC2329
stop() {
    interrupted=1
    if [[ -n $study ]]; then kill -TERM "$study" || true; else exit 143; fi
}
trap finish EXIT
trap stop TERM INT
trap 'again=1; stop' USR1

until ray status >/dev/null 2>&1; do
    kill -0 "$head" 2>/dev/null || { cat "$RAY_TMPDIR/head.log" >&2; exit 1; }
    sleep 1
done
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray start --address="$RAY_ADDRESS" --block --num-cpus="$SLURM_CPUS_PER_TASK" "${free_ports[@]}" &
workers=$!

# A study takes the workers that are there when it starts.
python - "$((SLURM_JOB_NUM_NODES + 1))" "$@" <<'PYTHON' &
import os, sys, time, ray

nodes, deadline = int(sys.argv[1]), time.monotonic() + 300
while not ray.is_initialized():
    try:
        ray.init(logging_level="error")
    except ConnectionError:  # a head that is still busy with starting
        if time.monotonic() > deadline:
            raise
while (joined := sum(node["Alive"] for node in ray.nodes())) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"error: after 5 minutes {joined - 1} of {nodes - 1} nodes have joined")
    time.sleep(1)
ray.shutdown()
os.execv(sys.executable, [sys.executable, "studies/label_sweep.py", *sys.argv[2:]])
PYTHON
study=$!
interrupted=1
while [[ -n $interrupted ]]; do # a signal ends the waiting early
    interrupted='' code=0
    wait "$study" || code=$?
done
exit "$code"
