"""What runs in the shell of a device: POSIX sh with what Linux, BusyBox and macOS all have.

Names never become part of a script: they are its arguments. Every script first prints ``BEGIN``,
since a login shell's start files may print something of their own before it.
"""

from __future__ import annotations

import shlex

BEGIN = "weightspace-begin\n"

_BEGIN = "echo weightspace-begin\n"

# Where work folders are: on the disk and not in /tmp, which is memory on many boards, and for
# this user alone.
_BASE = "base=${XDG_CACHE_HOME:-$HOME/.cache}/weightspace/runs\n"

# Whatever a run starts carries its folder's name in the environment, in whichever group it is.
_PROCESSES = r"""
running() {
  if [ ! -r /proc/self/environ ]; then # macOS
    ps -A -E -ww -o pid= -o command= | grep -F -- "WEIGHTSPACE_RUN=$1" |
      while read -r pid command; do
        case $command in grep*) ;; *) echo "$pid" ;; esac
      done
  elif printf 'a\0b' | grep -qzxF b; then
    grep -lzxF -- "WEIGHTSPACE_RUN=$1" /proc/[0-9]*/environ | tr -cd '0-9\n'
  else # a BusyBox without grep -z
    for each in /proc/[0-9]*; do
      tr '\0' '\n' <"$each/environ" | grep -qxF -- "WEIGHTSPACE_RUN=$1" && echo "${each#/proc/}"
    done
  fi 2>/dev/null
}
end() {
  tries=0
  while found=$(running "$1"); [ -n "$found" ]; do
    [ "$tries" -lt 50 ] || return 1
    tries=$((tries + 1))
    kill -s KILL $found 2>/dev/null
    sleep 0.1
  done
  return 0
}
"""

# A keeper of ours, not another program that was given its number since.
_KEEPS = r"""
keeps() {
  kill -0 "$1" 2>/dev/null || return 1
  case $({ tr '\0' ' ' <"/proc/$1/cmdline" || ps -ww -p "$1" -o args=; } 2>/dev/null) in
    *weightspace-keeper*) return 0 ;;
  esac
  return 1
}
"""

_DIGEST = r"""
if command -v sha256sum >/dev/null 2>&1; then digest() { sha256sum; }
elif command -v shasum >/dev/null 2>&1; then digest() { shasum -a 256; }
else digest() {
  python3 -c 'import hashlib, sys
found = hashlib.sha256()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
    found.update(block)
print(found.hexdigest())'
}
fi
"""

# Prints the names of the work folders.
LIST = (
    _BASE
    + _BEGIN
    + r"""
cd -- "$base" 2>/dev/null || exit 0
for each in *.*; do [ -d "$each" ] && echo "$each"; done
exit 0
"""
)

# OWNER [GONE...]: makes the folder OWNER.PID, or takes over what an interrupted run left, prints
# where it is, and waits until its standard input ends, be it because the link is lost. Then it
# ends what runs there and removes the folder. GONE are folders whose owners have ended although
# their keepers still wait.
KEEPER = (
    _PROCESSES
    + _KEEPS
    + _BASE
    + _BEGIN
    + r"""
umask 077
mkdir -p -- "$base" && chmod 700 -- "$base" && cd -- "$base" && base=$(pwd) || exit 1
trap '' HUP INT TERM
name=$1.$$
shift
for old in *.*; do
  [ -d "$old" ] || continue
  keeper=${old##*.}
  case $keeper in '' | *[!0-9]*) continue ;; esac
  gone=
  for each; do [ "$each" = "$old" ] && gone=yes; done
  if keeps "$keeper"; then
    [ -n "$gone" ] || continue
    kill -s KILL "$keeper"
  fi
  end "$old" || continue
  if [ -e "$name" ] || ! mv -- "$old" "$name" 2>/dev/null; then rm -rf -- "$old"; fi
done
mkdir -p -- "$name" && echo "$base/$name" || exit 1
while read -r line; do :; done
end "$name"
cd / && rm -rf -- "$base/$name"
"""
)

# FOLDER NAME PROGRAM [ARGUMENT...]: becomes the program.
RUN = (
    _BEGIN
    + r"""
cd -- "$1" || exit 1
WEIGHTSPACE_RUN=$2
export WEIGHTSPACE_RUN
shift 2
exec "$@"
"""
)

# NAME: ends what runs in that folder; fails where something cannot be ended.
END = _PROCESSES + _BEGIN + 'end "$1"\n'

# FOLDER NAME: what the keeper does in the end, done for a keeper that hangs on a lost link.
REMOVE = (
    _PROCESSES
    + _KEEPS
    + _BEGIN
    + r"""
keeper=${2##*.}
keeps "$keeper" && kill -s KILL "$keeper"
end "$2" && rm -rf -- "$1"
"""
)

# FOLDER [NAME...]: a line for each name, its SHA-256 or a dash where there is no such file.
DIGESTS = (
    _DIGEST
    + _BEGIN
    + r"""
cd -- "$1" || exit 1
shift
for name; do if [ -f "./$name" ]; then digest <"./$name" || exit 1; else echo -; fi; done
"""
)

# FOLDER NAME SHA256: renames NAME.part to NAME where it is whole; prints what it found.
ACCEPT = (
    _DIGEST
    + _BEGIN
    + r"""
cd -- "$1" || exit 1
found=$(digest <"./$2.part") || exit 1
echo "$found"
[ "${found%% *}" = "$3" ] || exit 0
mv -f -- "./$2.part" "./$2"
"""
)

# FOLDER: the KiB that are free there.
FREE = _BEGIN + 'df -Pk -- "$1" | { read -r line; read -r a b c free rest; echo "$free"; }\n'


def command_line(script: str, name: str, *args: str) -> str:
    """Write the one line that a device's login shell is given; every argument arrives as it is.

    Args:
        name: what the process is called there.
    """
    return "exec " + shlex.join(["sh", "-c", script, name, *args])
