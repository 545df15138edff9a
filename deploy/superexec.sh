# Read by superlink.sh and supernode.sh: starts the SuperExec, which starts the process of each task.
#
# Flower starts one by itself, but then gives tasks to everyone who reaches the port. This one shares a secret with the
# program that gives them, in a file that only their user can read and that is removed when that program has ended.

# start_superexec ADDRESS OPTION...: for the program that this script becomes; sets $secret, the file. Whichever of the two
# ends takes the other along: a site without its SuperExec would look connected and never answer.
start_superexec() {
  local address=$1 folder
  shift
  folder=$(mktemp -d)
  secret=$folder/secret
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$secret")
  (
    flower-superexec --runtime-api-address "$address" --superexec-auth-secret-file "$secret" --parent-pid $$ "$@" &
    exec >/dev/null 2>&1
    while kill -0 $$ && kill -0 $!; do sleep 1; done
    kill $$ $(jobs -pr) || true
    rm -rf "$folder"
  ) &
}
