#!/bin/sh
# Makes .venv and installs requirements/<role>.txt into it: deploy/bootstrap.sh api|worker|embedded|dev
#
# Needs only Python 3.11 to 3.13 with pip. PYTHON names an interpreter, else the newest suitable one is taken.
# Debian splits `ensurepip` off into python3-venv; without it the environment is made by virtualenv.
set -eu

cd "$(dirname "$0")/.."
role=${1:-}
requirements=requirements/$role.txt
venv=.venv
stamp=$venv/.stamp-$role

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV || true

fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

# A version manager's shim may be on PATH without an interpreter behind it: run it to know.
suitable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

usable_venv() {
    suitable $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1
}

venv_by_virtualenv() {
    tool=$(mktemp -d)
    pin=$(sed -n 's/^\(virtualenv==[^ ;\\]*\).*/\1/p' requirements/dev.txt)
    done=1
    "$1" -m pip install -qq --target "$tool" "${pin:-virtualenv}" 2>/dev/null &&
        PYTHONPATH=$tool "$1" -m virtualenv -q --no-periodic-update --clear $venv >/dev/null 2>&1 &&
        done=0
    rm -rf "$tool"
    return $done
}

make_venv() {
    rm -rf $venv
    "$1" -m venv $venv >/dev/null 2>&1 && usable_venv && return
    rm -rf $venv
    venv_by_virtualenv "$1" && usable_venv
}

# The first candidate that can make an environment; a Python without pip is no reason to give up.
create() {
    found=
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        suitable "$python" || continue
        found=$python
        make_venv "$python" && return
    done
    rm -rf $venv
    [ -n "$found" ] && fail "$found can make no virtual environment: install its venv module or pip" \
        "(Debian: apt-get install python3-venv), and check that PyPI can be reached"
    fail "${PYTHON:-python3} is not Python 3.11, 3.12 or 3.13: install one of them, or name it: make PYTHON=/path/to/python"
}

up_to_date() {
    [ -e "$stamp" ] && [ -z "$(find "$requirements" -newer "$stamp")" ]
}

# dev contains embedded, and embedded contains api and worker, all with the same pins.
mark_done() {
    case $role in
        dev) parts="dev embedded api worker" ;;
        embedded) parts="embedded api worker" ;;
        *) parts=$role ;;
    esac
    for part in $parts; do touch "$venv/.stamp-$part"; done
}

[ -f "$requirements" ] || fail "no role '$role': it is one of api, worker, embedded, dev"

# Two makes at once: the second waits, then finds the work done.
if command -v flock >/dev/null 2>&1; then
    exec 9>.venv.lock
    flock 9
fi

usable_venv || create
up_to_date && exit 0
echo "Installing $requirements into $venv (the first time takes up to a minute) ..." >&2
$venv/bin/python -m pip install -qq -r "$requirements" ||
    fail "pip could not install $requirements: see its message above, and check that PyPI can be reached"
# In place, so that Celery finds our commands; what it depends on was installed above.
$venv/bin/python -m pip install -qq --no-deps -e . ||
    fail "pip could not install the checkout itself: see its message above"
mark_done
