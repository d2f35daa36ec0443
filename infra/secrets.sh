#!/bin/sh
# sh infra/secrets.sh: writes infra/.env with new passwords for every server, readable by you alone and ignored by git.
# compose.yaml, systemd/ and kubernetes/ all take their secrets from that one file. It is never overwritten.
set -eu

file=$(cd "$(dirname "$0")" && pwd)/.env
[ ! -e "$file" ] || { echo "error: $file: exists already, and servers may use it; remove it first to start over" >&2; exit 2; }

new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

umask 077
prefect=hiar:$(new)
mlflow=$(new)
cat > "$file.partial" <<END
PGPASSWORD=$(new)
PREFECT_SERVER_API_AUTH_STRING=$prefect
PREFECT_API_AUTH_STRING=$prefect
MLFLOW_AUTH_ADMIN_USERNAME=hiar
MLFLOW_AUTH_ADMIN_PASSWORD=$mlflow
MLFLOW_TRACKING_USERNAME=hiar
MLFLOW_TRACKING_PASSWORD=$mlflow
MLFLOW_FLASK_SERVER_SECRET_KEY=$(new)
AWS_ACCESS_KEY_ID=hiar-$(new | cut -c1-16)
AWS_SECRET_ACCESS_KEY=$(new)
END
mv "$file.partial" "$file"
echo "$file: written, mode 600"
