#!/usr/bin/env bash
# A study on Slurm, on a Ray cluster that lives as long as the job (docs/cluster.md):
#
#   sbatch tune/clusters/slurm.sh --study lambdas
#
# What follows the script's name goes to mmfa-study. Change the lines below, or give sbatch the same options; without
# GPUs remove --gpus-per-node. The folder from which you submit and the environment (.venv in it, or $MMFA_VENV) must
# be on a disk that all nodes share. A job that is requeued, or runs out of time, goes on where it was.
#SBATCH --job-name=mmfa-study
#SBATCH --output=mmfa-study-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

PATH=${MMFA_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH
run=$SLURM_SUBMIT_DIR/.mmfa-study-$SLURM_JOB_ID # shared
scratch=/tmp/mmfa-study-$SLURM_JOB_ID           # on each node; short, for the paths of Ray's sockets begin with it
driver='' requeue='' steps=()

finish() { # the driver first, then Ray on every node, then what is left
    set +e
    trap '' USR1 TERM
    [[ -n $driver ]] && kill "$driver" 2> /dev/null && wait "$driver"
    scancel --quiet --signal=TERM "$SLURM_JOB_ID" # the steps, not this script
    wait "${steps[@]}"
    rm -rf "$run"
}
stop() { # SECONDS: a driver whose Ray is gone may wait for it for a minute
    [[ -n $driver ]] || exit 1
    kill "$driver" 2> /dev/null
    (sleep "$1" && kill -KILL "$driver" 2> /dev/null) &
}
trap finish EXIT
trap 'requeue=yes; stop 90' USR1 # two minutes before the end of --time
trap 'stop 15' TERM              # scancel, scontrol requeue, preemption: Slurm's SIGKILL comes 30 seconds later

# A token for this job alone.
(umask 077 && mkdir -p "$run" && python -c 'import secrets; print(end=secrets.token_hex(32))' > "$run/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$run/token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=5

# Other jobs may run on these nodes: the head takes ports that are free there, every other port is left to the system.
read -r port client dashboard < <(python -c '
import socket
taken = [socket.create_server(("", 0)) for _ in range(3)]
print(*(listener.getsockname()[1] for listener in taken))')
RAY_ADDRESS=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())'):$port
export RAY_ADDRESS SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=1

ray_start() { # NUMBER OF NODES, srun's option, ray start's options
    srun --nodes="$1" --ntasks="$1" "$2" bash -c 'trap : TERM; ray start --block --temp-dir="$0" "$@"; rm -rf "$0"' \
        "$scratch" --num-cpus="$SLURM_CPUS_PER_TASK" --min-worker-port=0 --max-worker-port=0 \
        --dashboard-agent-listen-port=0 "${@:3}" &>> "$run/ray.log" &
    steps+=($!)
}
wait_for() { # SECONDS, WHAT, COMMAND
    timeout "$1" bash -c "until $3; do sleep 1; done" &> /dev/null && return
    echo "$2 within $1 seconds:" >&2
    tail -n 40 "$run/ray.log" >&2
    exit 1
}
ray_start 1 --nodelist="$SLURMD_NODENAME" --head --port="$port" --ray-client-server-port="$client" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
wait_for 300 "Ray did not start on $SLURMD_NODENAME" 'ray health-check --address "$RAY_ADDRESS"'
if ((SLURM_NNODES > 1)); then
    ray_start $((SLURM_NNODES - 1)) --exclude="$SLURMD_NODENAME" --address="$RAY_ADDRESS"
    wait_for 300 "Not all of $SLURM_NNODES nodes joined Ray" "python -c '
import ray
ray.init(log_to_driver=False)
raise SystemExit(sum(node[\"Alive\"] for node in ray.nodes()) < $SLURM_NNODES)'"
fi
echo "Ray runs on $SLURM_NNODES nodes. Its dashboard: ssh -L 8265:127.0.0.1:$dashboard $SLURMD_NODENAME"

mmfa-study "$@" &
driver=$! code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do # it was a signal that ended the wait
    code=0
    wait "$driver" || code=$?
done
driver=''
if [[ -n $requeue && $code != 0 ]]; then
    echo "Out of time: the job is requeued and goes on."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
