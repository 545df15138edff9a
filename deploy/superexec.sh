# Sourced by superlink.sh and supernode.sh: starts the SuperExec, which starts the process of each task.
#
# By default, Flower starts a SuperExec itself, but then any process that reaches the port can request tasks. This one
# shares a secret with its SuperLink or SuperNode, in a file that only their user can read and that is deleted at the end.

superexec=(flower-superexec)

# start_superexec ADDRESS OPTION...: starts $superexec for the program that the script executes next, and sets $secret,
# the file. When one of the two ends, the other is stopped: a site without its SuperExec would be connected but never reply.
start_superexec() {
  local address=$1 folder
  shift
  folder=$(mktemp -d)
  secret=$folder/secret
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$secret")
  (
    "${superexec[@]}" --runtime-api-address "$address" --superexec-auth-secret-file "$secret" --parent-pid $$ "$@" &
    exec >/dev/null 2>&1
    while kill -0 $$ && kill -0 $!; do sleep 1; done
    kill $$ $(jobs -pr) || true
    rm -rf "$folder"
  ) &
}
