#!/usr/bin/env bash
# Makes a random password or key for everything that docker-compose.yml wants one for, in secrets/ (or $SECRETS_DIR), and
# .env from .env.example. What is there already stays as it is: run it again after an update, for what is new.
#
# Each file is mounted into just the containers that need it, whose users differ from yours: so the files may be read by
# all, and the folder be entered by nobody but you.
set -euo pipefail

cd "$(dirname "$0")/.."
folder=${SECRETS_DIR:-secrets}
services="payments delivery notifications orders"
broker_users="setup operator api $services recorder beat flower"

random() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

# keep NAME CONTENT: write it unless it is there; by a move, so that half a secret is never found
keep() {
    [ -s "$folder/$1" ] || put "$1" "$2"
}

put() {
    printf '%s\n' "$2" >"$folder/.new"
    chmod 444 "$folder/.new"
    mv -f "$folder/.new" "$folder/$1"
}

# password FILE: the one within a URL
password() { sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' "$folder/$1"; }

# rabbitmq_hash PASSWORD: base64 of a salt of four bytes and SHA-256 of salt and password
rabbitmq_hash() {
    local salt digest
    salt=$(random | cut -c 1-4)
    digest=$(printf '%s' "$salt$1" | sha256sum | cut -c 1-64 | sed 's/../\\x&/g')
    printf "$salt$digest" | base64 | tr -d '\n'
}

mkdir -p "$folder"
chmod 700 "$folder"
[ -e .env ] || [ -n "${SECRETS_DIR:-}" ] || cp .env.example .env

keep postgres_password "$(random)"
for service in $services; do
    keep "${service}_database_url" "postgresql+psycopg2://$service:$(random)@postgres:5432/$service"
done
for user in $broker_users; do
    keep "${user}_broker_url" "amqp://$user:$(random)@rabbitmq:5672/waybill"
done
keep redis_url "redis://fleet:$(random)@redis:6379/0"
keep jwt_secret "$(random)$(random)"
keep flower_login "admin:$(random)"
for sender in payments delivery; do
    keep "${sender}_webhook_secret" "whsec_$(head -c 32 /dev/urandom | base64 | tr -d '\n')"
done

# Made from the files above: the same passwords, as the servers want to have them.
put redis_users "user default off
user fleet on #$(printf '%s' "$(password redis_url)" | sha256sum | cut -c 1-64) ~* &* +@all -@admin -flushall -flushdb"
definitions=$(cat deploy/rabbitmq/definitions.json)
for user in $broker_users; do
    definitions=${definitions//@$user@/$(rabbitmq_hash "$(password "${user}_broker_url")")}
done
put rabbitmq_definitions "$definitions"
