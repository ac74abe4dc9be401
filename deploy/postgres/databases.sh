#!/bin/sh
# One database and one role for each service, and no way into another's. Run by the image when its volume is new, and by
# hand (docker-compose exec postgres /docker-entrypoint-initdb.d/10-databases.sh) when a later release adds a service.
set -eu

run() { psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 -U "${POSTGRES_USER:-postgres}" -d "$1"; }

for secret in /run/secrets/*_database_url; do
    service=$(basename "$secret" _database_url)
    password=$(sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' "$secret")
    # gexec: CREATE has no IF NOT EXISTS for roles and databases.
    run postgres <<SQL
SELECT 'CREATE ROLE $service LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$service') \gexec
ALTER ROLE $service PASSWORD '$password';
SELECT 'CREATE DATABASE $service OWNER $service' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$service') \gexec
REVOKE ALL ON DATABASE $service FROM PUBLIC;
SQL
done
run postgres <<SQL
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SQL
