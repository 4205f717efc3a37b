#!/usr/bin/env bash
# Deletes what deploy.sh created, and only that. Safe to repeat.
set -euf -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/common.sh
. infra/common.sh

usage() {
  cat <<'END'
infra/destroy.sh --project=PROJECT --region=REGION [options]

Deletes what infra/deploy.sh created under this name, and removes the roles that it granted. Whatever lacks its label or
description stays, and so do the APIs with Google's own accounts. Running jobs continue, and their items are no longer settled.
The custom roles stay too, granted to no one: Google blocks the id of a deleted role for 37 days, and only undeletes it for 7.

  --project PROJECT, --region REGION, --name NAME, --job-regions R,R,
  --job-account ADDRESS, --staging-buckets B,B, --secret NAME
                             as for deploy.sh; one that you leave out is read from the deployed functions, but for --job-account
  --with-data                also delete the secret with the W&B API key, the record, the staging buckets with everything that jobs
                             wrote, and the repository of jobs' images. Without it they stay, and a new deployment uses them again
  --yes                      do not ask for confirmation
  --dry-run                  print the commands as if everything existed, and run none of them
END
}

with_data='' yes=''

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=yes && shift && continue ;;
    --with-data) with_data=yes && shift && continue ;;
    --yes) yes=yes && shift && continue ;;
    --*=*) option=${1%%=*} value=${1#*=} && shift ;;
    --*)
      case ${2:---} in --*) fail "$1 has no value, or is not an option. --help lists all options." ;; esac
      option=$1 value=$2 && shift 2
      ;;
    *) fail "'$1' is not an option. --help lists all options." ;;
  esac
  shared_option "$option" "$value" || fail "unknown option $option. --help lists all options."
done

check_options
job_accounts=${job_accounts:-$(account jobs)}

if [ -z "$yes$dry_run" ]; then
  echo "This deletes the deployment $name in $project${with_data:+ WITH ITS DATA: the W&B API key, the record, the staging buckets, the images}."
  read -r -p "Type its name to continue: " answer || fail "the question needs a terminal. Use --yes to continue without confirmation."
  [ "$answer" = "$name" ] || fail "the name does not match. Nothing was deleted."
fi

cannot_keep() { :; } # nothing is deployed here
[ -n "$dry_run" ] || keep_deployed
set_names

there() { [ -n "$dry_run" ] || has "$1" "$2"; } # there LIST LINE: whether it is in the list; in a dry run everything exists

# ours LIST NAME MARK: whether NAME exists and deploy.sh created it.
ours() {
  if there "$1" "$2$tab$3"; then return; fi
  ! grep -q "^$2$tab" <<<"$1" || echo "$2 stays: deploy.sh did not create it."
  return 1
}

# all_of LIST NAMES: those of the names that are ours, each with a space before it. The others are reported.
all_of() {
  local one
  for one in $2; do
    if ours "$1" "$one" "$name" >&2; then printf ' %s' "$one"; fi
  done
}

step "Triggers"
found=$(look scheduler jobs list --location="$region" --format='value(name.basename(),description)')
! ours "$found" "$name-tick" "$made" || run scheduler jobs delete "$name-tick" --location="$region"
found=$(look logging sinks list --format='value(name,description)')
! ours "$found" "$name-job-ends" "$made" || run logging sinks delete "$name-job-ends"
found=$(look pubsub subscriptions list --format="value(name.basename(),labels.$mark_key)")
found=$(all_of "$found" "$name-ticks $name-job-logs $name-ticks-dead $name-job-logs-dead")
# shellcheck disable=SC2086  # one word for each
[ -z "$found" ] || run pubsub subscriptions delete $found

step "Functions"
found=$(look functions list --v2 --regions="$region" --format="value(name.basename(),labels.$mark_key)")
for function in $(all_of "$found" "$name-dispatch $name-dispatch-now $name-job-state"); do
  run functions delete "$function" --region="$region" --gen2
done
repositories=$(look artifacts repositories list --location="$region" --format="value(name.basename(),labels.$mark_key)")
! ours "$repositories" "$name-functions" "$name" || run artifacts repositories delete "$name-functions" --location="$region"

step "Topics"
found=$(look pubsub topics list --format="value(name.basename(),labels.$mark_key)")
found=$(all_of "$found" "$name-ticks $name-job-logs $name-ticks-dead $name-job-logs-dead")
# shellcheck disable=SC2086  # one word for each
[ -z "$found" ] || run pubsub topics delete $found

step "Monitoring"
found=$(look alpha monitoring policies list --format="value(name,userLabels.$mark_key)")
awk -F '\t' -v name="$name" '$2 == name { print $1 }' <<<"$found" | while IFS= read -r alert; do
  run alpha monitoring policies delete "$alert" </dev/null
done
found=$(look monitoring dashboards list --format="value(name,labels.$mark_key)")
awk -F '\t' -v name="$name" '$2 == name { print $1 }' <<<"$found" | while IFS= read -r dashboard; do
  run monitoring dashboards delete "$dashboard" </dev/null
done
found=$(look logging metrics list --format='value(name)')
for file in $(find infra/monitoring/metrics -name '*.yaml' | sort); do
  metric=$(sed "s/\${name}/$name/g" "$file" | field name)
  ! there "$found" "$metric" || run logging metrics delete "$metric"
done

step "Data and roles"
secrets=$(look secrets list --format="value(name.basename(),labels.$mark_key)")
buckets=$(look storage buckets list --format="value(name,labels.$mark_key)")

deletes() { [ -n "$with_data" ] && ours "$1" "$2" "$name"; } # deletes LIST NAME: whether it is to be deleted

exists() { [ -n "$dry_run" ] || grep -q "^$2\($tab\|$\)" <<<"$1"; } # exists LIST NAME

dispatch=serviceAccount:$(account dispatch)
now=serviceAccount:$(account now)
job_state=serviceAccount:$(account job-state)
build=serviceAccount:$(account build)
custom=projects/$project/roles/$id

if deletes "$secrets" "$secret"; then
  run secrets delete "$secret"
elif exists "$secrets" "$secret"; then
  on secrets "$secret"
  revoke "$dispatch" roles/secretmanager.secretAccessor
  revoke "$now" roles/secretmanager.secretAccessor
  for address in $job_accounts; do
    # An account that deploy.sh did not create may have the role for another purpose, unless the settings show that we granted it.
    if [ "$address" = "$(account jobs)" ] || jobs_read_key; then
      revoke "serviceAccount:$address" roles/secretmanager.secretAccessor
    fi
  done
fi
for token in $(token_secrets); do
  if on secrets "$token"; then
    for address in $job_accounts; do
      revoke "serviceAccount:$address" roles/secretmanager.secretAccessor
    done
  else
    echo "Roles on $token stay, because its policy cannot be read. See gcloud's message above."
  fi
done
if deletes "$buckets" "$state_bucket"; then
  run storage rm "gs://$state_bucket" --recursive
elif exists "$buckets" "$state_bucket"; then
  on "storage buckets" "gs://$state_bucket"
  revoke "$dispatch" "${custom}_record"
  revoke "$now" "${custom}_record"
fi
for bucket in ${staging//,/ }; do
  if deletes "$buckets" "${bucket#gs://}"; then
    run storage rm "$bucket" --recursive
  elif [ -n "$staging_buckets" ] || exists "$buckets" "${bucket#gs://}"; then
    on "storage buckets" "$bucket"
    for address in $job_accounts; do
      revoke "serviceAccount:$address" roles/storage.objectUser
    done
  fi
done
if deletes "$repositories" "$name-images"; then
  run artifacts repositories delete "$name-images" --location="$region"
elif exists "$repositories" "$name-images"; then
  number=$(look projects describe "$project" --format='value(projectNumber)')
  on "artifacts repositories" "$name-images" "--location=$region"
  for agent in gcp-sa-aiplatform gcp-sa-aiplatform-cc; do
    revoke "serviceAccount:service-${number:-PROJECT_NUMBER}@$agent.iam.gserviceaccount.com" roles/artifactregistry.reader
  done
fi
for address in $job_accounts; do
  if [ "$address" != "$(account jobs)" ]; then
    on "iam service-accounts" "$address"
    revoke "$dispatch" "$(act_as "$address")"
    revoke "$now" "$(act_as "$address")"
  fi
done
on projects "$project"
for member in "$dispatch" "$now"; do
  revoke "$member" "${custom}_dispatch"
  revoke "$member" "${custom}_job_logs"
done
revoke "$job_state" "${custom}_job_state"
revoke "$build" roles/logging.logWriter
revoke "$build" roles/cloudfunctions.developer
for member in "serviceAccount:$(account deploy)" "serviceAccount:$(account test)"; do
  revoke "$member" roles/logging.logWriter
  revoke "$member" roles/cloudfunctions.developer
  revoke "$member" roles/storage.objectViewer "$name-builds"
done
revoke "$build" roles/storage.objectViewer "$name-sources"
on projects "$project" # read again: the line above removes the role under every condition
revoke "$build" roles/storage.objectViewer "$name-builds"

step "Accounts"
found=$(look iam service-accounts list --format='value(email,description)')
for account in dispatch now job-state push build deploy test jobs; do
  address=$(account $account)
  ! ours "$found" "$address" "$made" || run iam service-accounts delete "$address"
done

step "Done"
[ -n "$with_data" ] || echo "The secret, the buckets and the images still exist. --with-data deletes those that deploy.sh created."
