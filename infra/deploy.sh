#!/usr/bin/env bash
# Deploys vertex-launch with gcloud, step by step. Safe to repeat: it changes only what differs, and keeps deployed options.
set -euf -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/common.sh
. infra/common.sh

usage() {
  cat <<'END'
infra/deploy.sh --project=PROJECT --region=REGION [options]

Creates everything that vertex-launch needs in a Google Cloud project, or updates it, from this checkout with its
launch-config.yaml and vertex-launch.yaml. Needs gcloud, logged in with an account that may do this (an owner of the project).

An option that you leave out keeps its deployed value; its default (in parentheses) is for the first deployment.

  --project PROJECT          id of the project in which everything is created and jobs run
  --region REGION            region of the functions, such as us-central1
  --name NAME                prefix of all names, and the deployment's name (vertex-launch)
  --job-regions R,R          regions in which jobs may run, the first is their default (the region)
  --wandb-base-url URL       a self-hosted W&B server; none: the one in vertex-launch.yaml (none)
  --schedule CRON            when to run a pass besides after a job's end, in UTC (* * * * *)
  --invoker MEMBER           who may call dispatch-now, such as user:ada@example.com; repeatable; others keep access
  --job-account ADDRESS      an existing service account that jobs may run as; repeatable, the first is that of jobs whose
                             run spec names none (NAME-jobs is created)
  --staging-buckets B,B      existing buckets that jobs write to, one for each job region (PROJECT-NAME-staging-REGION are created)
  --secret NAME              an existing secret of the project with the W&B API key (NAME-wandb-api-key is created)
  --notification-channels C,C  Cloud Monitoring channels for alerts, as projects/P/notificationChannels/N
  --vpc-connector NAME       a Serverless VPC Access connector, for a W&B server in a VPC network; none: no connector (none)
  --memory SIZE              memory of each function that runs passes: 512Mi, 1Gi, 2Gi or 4Gi (1Gi). 512Mi is enough if items bring images only
  --ingress SETTING          where dispatch-now may be called from: all, internal-and-gclb or internal-only (all). The other functions accept
                             internal traffic only
  --cloud-build              create accounts to test and to deploy with cloudbuild.yaml
  --functions-only           deploy only the functions; changes no roles
  --dry-run                  print the commands for an empty project and run none of them
END
}

wandb_base_url='' schedule='' invokers='' channels='' vpc_connector='' memory='' ingress='' cloud_build='' functions_only=''

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=yes && shift && continue ;;
    --cloud-build) cloud_build=yes && shift && continue ;;
    --functions-only) functions_only=yes && shift && continue ;;
    --*=*) option=${1%%=*} value=${1#*=} && shift ;;
    --*)
      case ${2:---} in --*) fail "$1 has no value, or is not an option. --help lists all options." ;; esac
      option=$1 value=$2 && shift 2
      ;;
    *) fail "'$1' is not an option. --help lists all options." ;;
  esac
  case $option in
    --wandb-base-url) wandb_base_url=$value ;;
    --schedule) schedule=$value ;;
    --invoker) invokers="$invokers$value " ;;
    --notification-channels) channels=$value ;;
    --vpc-connector) vpc_connector=$value ;;
    --memory) memory=$value ;;
    --ingress) ingress=$value ;;
    *) shared_option "$option" "$value" || fail "unknown option $option. --help lists all options." ;;
  esac
done

check_options
jobs_account=${job_accounts%% *} # of jobs that name none
[[ $wandb_base_url =~ ^(none|(https://[^/\"\\ ]+|http://(127\.0\.0\.1|localhost)(:[0-9]+)?)(/[^\"\\ ]*)?)?$ ]] || fail "--wandb-base-url '$wandb_base_url' must begin with https://, \
because the API key is sent there."
[[ $schedule =~ ^([^\ ]+(\ [^\ ]+){4})?$ ]] || fail "--schedule '$schedule' does not have the five fields of cron, as in '*/5 * * * *'."
[[ $memory =~ ^(512Mi|[124]Gi)?$ ]] || fail "--memory '$memory' cannot be used. Use 512Mi, 1Gi, 2Gi or 4Gi; one vCPU cannot have more."
[[ $ingress =~ ^(all|internal-and-gclb|internal-only)?$ ]] || fail "--ingress '$ingress' cannot be used. Use all, internal-and-gclb or internal-only."
for member in $invokers; do
  [[ $member =~ ^(user|group|serviceAccount|principal|principalSet):.+ ]] || fail "--invoker '$member' is not user:…, group:…, \
serviceAccount:…, principal:… or principalSet:…. With allUsers, anyone could start jobs at your cost."
done
for file in main.py requirements.txt launch-config.yaml; do
  [ -f "$file" ] || fail "$PWD has no $file, so it is not a complete checkout of vertex-launch."
done
! placeholder=$(grep -Eo '^[^#]*YOUR-[A-Z-]+' launch-config.yaml | head -n 1) ||
  fail "launch-config.yaml still has a placeholder: '$placeholder'. Write your W&B team and your queues there."

# What is deployed. Without the API there is nothing, and asking for it would fail.
apis=''
[ -n "$functions_only" ] || apis=$(look services list --enabled --format='value(config.name)')
if [ -n "$functions_only" ] || has "$apis" cloudfunctions.googleapis.com; then
  keep_deployed
  keep --wandb-base-url wandb_base_url "$(deployed 8)"
  [ "$(deployed 9)" = 1Gi ] || keep --memory memory "$(deployed 9)"
  case $(value_of "$functions" "$name-dispatch-now" | cut -f 13) in
    ALLOW_INTERNAL_AND_GCLB) keep --ingress ingress internal-and-gclb ;;
    ALLOW_INTERNAL_ONLY) keep --ingress ingress internal-only ;;
  esac
  keep --vpc-connector vpc_connector "$(deployed 10)"
  [ -n "$jobs_account" ] || jobs_account=$(deployed 12)
fi
[ "$wandb_base_url" != none ] || wandb_base_url=''
[ "$vpc_connector" != none ] || vpc_connector=''
memory=${memory:-1Gi}
set_names
if [ -z "$jobs_account" ] && [ -z "$functions_only" ]; then
  jobs_account=$(account jobs)
elif [ -z "$jobs_account$dry_run" ] && ! setting jobs_account | grep -q @; then
  fail "$name-dispatch knows no account for jobs whose run spec names none, so such items would fail. Run this once without --functions-only, \
name the account with --job-account, or set jobs_account in vertex-launch.yaml."
fi
[ -z "$kept" ] || echo "Kept from the deployed functions, because these options were not given:$kept"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sha() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-40; }

dispatch=serviceAccount:$(account dispatch)
now=serviceAccount:$(account now)
job_state=serviceAccount:$(account job-state)
push=serviceAccount:$(account push)
build=serviceAccount:$(account build)
deploy=serviceAccount:$(account deploy)
test=serviceAccount:$(account test)

# The functions

# Only the secret's name: anyone who may view a function sees its environment, so the key must not be in it.
cat >"$work/environment.yaml" <<END
GOOGLE_CLOUD_PROJECT: "$project"
GOOGLE_CLOUD_REGION: "$job_regions"
STAGING_BUCKETS: "$staging"
STATE_BUCKET: "gs://$state_bucket"
${jobs_account:+JOBS_ACCOUNT: \"$jobs_account\"}
DISPATCH_TOPIC: "projects/$project/topics/$name-ticks"
WANDB_API_KEY_SECRET: "projects/$project/secrets/$secret/versions/latest"
VERTEX_LAUNCH_DEPLOYMENT: "$name"
${wandb_base_url:+WANDB_BASE_URL: \"$wandb_base_url\"}
END

# deploy_function NAME ENTRY_POINT ACCOUNT TIMEOUT MAX_INSTANCES MEMORY: deploy it, unless the digest in its label says that it
# has this code and these settings. Sets uri.
deploy_function() {
  local function=$name-$1 found digest from=internal-only left=3 # Pub/Sub of the same project is internal
  [ "$1" != dispatch-now ] || from=${ingress:-all}               # people call it; IAM decides who may
  set -- --region="$region" --gen2 --runtime=python313 --entry-point="$2" --trigger-http --ingress-settings="$from" \
    --service-account="$(account "$3")" --timeout="$4s" --memory="$6" --cpu=1 --concurrency=1 --min-instances=0 --max-instances="$5" \
    --build-service-account="projects/$project/serviceAccounts/$(account build)" \
    --docker-repository="projects/$project/locations/$region/repositories/$name-functions" \
    ${vpc_connector:+--vpc-connector="$vpc_connector"}
  digest=$({ printf '%s\n' "$@" && cat "$work/environment.yaml" "$work/source"; } | sha)
  found=$(value_of "$functions" "$function")
  if [ "$(cut -f 1,2 <<<"$found")" = "ACTIVE$tab$digest" ]; then
    uri=$(cut -f 3 <<<"$found")
    echo "$function is up to date."
    return
  fi
  if [ -z "$found" ]; then
    set -- "$@" --no-allow-unauthenticated # only for a new one: otherwise gcloud would rewrite who may call it
  elif [ -z "$vpc_connector" ]; then
    set -- "$@" --clear-vpc-connector
  fi
  # A build fails if the roles of its account do not work yet.
  until uri=$(run functions deploy "$function" "$@" --source=. --env-vars-file="$work/environment.yaml" \
    --update-labels="digest=$digest$([ -n "$functions_only" ] || printf ,%s "$mark")" --format='value(serviceConfig.uri)'); do
    left=$((left - 1))
    [ -n "$granted_at" ] && [ "$left" -gt 0 ] ||
      fail "$function was not deployed; see gcloud's message above. If it names a missing role, run this again in a few minutes."
    echo "This run has granted roles, which may not work everywhere yet. Trying again in $((6 * pause)) s." >&2
    sleep "$((6 * pause))"
  done
  [ -z "$dry_run" ] || uri=https://URL-OF-$function
}

deploy_functions() {
  step "Functions"
  if [ -n "$dry_run" ]; then
    echo "environment.yaml:" && sed 's/^/  /' "$work/environment.yaml"
  fi
  # The files that gcloud would upload, by name and content.
  look meta list-files-for-upload . | sort | while IFS= read -r file; do
    echo "$file $(sha <"$file")"
  done >"$work/source"
  deploy_function dispatch dispatch dispatch 120 1 "$memory"
  dispatch_uri=$uri
  deploy_function dispatch-now dispatch_now now 120 1 "$memory"
  dispatch_now_uri=$uri
  deploy_function job-state job_state job-state 60 3 512Mi
  job_state_uri=$uri
}

if [ -n "$functions_only" ]; then
  deploy_functions
  exit
fi

step "APIs"
missing=''
for api in aiplatform artifactregistry cloudbuild cloudfunctions cloudresourcemanager cloudscheduler iam logging monitoring pubsub run \
  secretmanager storage ${vpc_connector:+vpcaccess}; do
  has "$apis" "$api.googleapis.com" || missing="$missing $api.googleapis.com"
done
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086  # one word for each
  run services enable $missing
  enabled_apis=$missing
fi
number=$(look projects describe "$project" --format='value(projectNumber)')
number=${number:-PROJECT_NUMBER}

step "Accounts and roles"
accounts=$(look iam service-accounts list --format='value(email)')

make_account() { # make_account NAME PURPOSE
  has "$accounts" "$(account "$1")" || patiently iam service-accounts create "$name-$1" --display-name="$2" --description="$made"
}

make_account dispatch "$name: runs passes for ticks"
make_account now "$name: runs passes for people"
make_account job-state "$name: looks up jobs that ended"
make_account push "$name: Pub/Sub calls the functions as this"
make_account build "$name: builds the functions"
if [ -n "$cloud_build" ]; then
  make_account deploy "$name: deploys the functions from Cloud Build"
  make_account test "$name: runs the tests in Cloud Build"
fi
if [ -z "$job_accounts" ]; then
  [ -z "$functions" ] || has "$accounts" "$(account jobs)" ||
    fail "this deployment has no account $(account jobs), so its jobs run as accounts of yours. Name them with --job-account."
  make_account jobs "$name: jobs run as this"
  job_accounts=$(account jobs)
fi

roles=$(look iam roles list --show-deleted --format='value(name.basename(),deleted)')

make_role() { # make_role NAME TITLE PERMISSIONS: a role with exactly these permissions, a comma list in alphabetical order
  local role=${id}_$1 found
  if ! grep -q "^$role$tab" <<<"$roles"; then
    patiently iam roles create "$role" --permissions="$3" --title="$name: $2" --description="$made" --stage=GA --quiet --format=none
    return
  fi
  # A deleted role can be restored for 7 days, and its id cannot be used again for 37.
  [ "$(value_of "$roles" "$role")" != True ] || run iam roles undelete "$role" --format=none ||
    fail "the role $role was deleted by hand more than 7 days ago, and its id is blocked until day 37. Wait, or deploy with another --name."
  found=$(look iam roles describe "$role" --flatten=includedPermissions --format='value(includedPermissions)' | sort | paste -sd , -)
  [ "$found" = "$3" ] || run iam roles update "$role" --permissions="$3" --quiet --format=none
}

jobs=aiplatform.customJobs
make_role dispatch "submit, look at and cancel jobs" "$jobs.cancel,$jobs.create,$jobs.get,$jobs.list"
make_role job_state "look at a job" "$jobs.get"
make_role record "keep the record" storage.objects.create,storage.objects.delete,storage.objects.get,storage.objects.list
make_role act_as "let jobs run as an account" iam.serviceAccounts.actAs
# The functions may read the project's logs only if log_lines asks for the last lines of failed jobs.
log_lines=$(sed -n 's/^log_lines: *\([1-9][0-9]*\).*/\1/p' vertex-launch.yaml 2>/dev/null || true)
[ -z "$log_lines" ] || make_role job_logs "read jobs' logs" logging.logEntries.list

on projects "$project"
grant "$dispatch" "projects/$project/roles/${id}_dispatch"
grant "$now" "projects/$project/roles/${id}_dispatch"
grant "$job_state" "projects/$project/roles/${id}_job_state"
if [ -n "$log_lines" ]; then
  grant "$dispatch" "projects/$project/roles/${id}_job_logs"
  grant "$now" "projects/$project/roles/${id}_job_logs"
fi
grant "$build" roles/logging.logWriter
# Google keeps the source of functions in a bucket with this name, which the first deployment creates.
grant "$build" roles/storage.objectViewer "$name-sources" \
  "$(bucket_only "gcf-v2-sources-$number-$region")"
if [ -n "$cloud_build" ]; then
  # What builds and tests run must not deploy, so each has an account of its own.
  grant "$deploy" roles/cloudfunctions.developer
  for member in "$deploy" "$test"; do
    grant "$member" roles/logging.logWriter
    grant "$member" roles/storage.objectViewer "$name-builds" "$(bucket_only "${project}_cloudbuild")"
  done
  revoke "$build" roles/cloudfunctions.developer # from earlier versions, like the next ones
  for account in dispatch now job-state build; do
    on "iam service-accounts" "$(account $account)"
    grant "$deploy" "projects/$project/roles/${id}_act_as"
    revoke "$build" "projects/$project/roles/${id}_act_as"
  done
fi
for address in $job_accounts; do
  on "iam service-accounts" "$address"
  grant "$dispatch" "$(act_as "$address")"
  grant "$now" "$(act_as "$address")"
done

step "Google's own accounts"
# Google makes them when a service is first used, or on request, and gives them their role only in the first case.
make_agent() { # make_agent SERVICE MEMBER ROLE: with this role on the chosen resource
  if granted "$2" "$3"; then return; fi
  patiently beta services identity create --service="$1.googleapis.com"
  grant "$2" "$3"
}
pubsub_agent=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com         # authenticates pushes, moves dead letters
vertex_agent=serviceAccount:service-$number@gcp-sa-aiplatform.iam.gserviceaccount.com     # runs jobs
custom_agent=serviceAccount:service-$number@gcp-sa-aiplatform-cc.iam.gserviceaccount.com # likewise, from the first job on
on "iam service-accounts" "$(account push)"
make_agent pubsub "$pubsub_agent" roles/iam.serviceAccountTokenCreator
on projects "$project"
make_agent aiplatform "$vertex_agent" roles/aiplatform.serviceAgent

step "Secret, buckets, repositories"
if [ -z "$wandb_secret" ]; then
  secrets=$(look secrets list --format='value(name.basename())')
  has "$secrets" "$secret" || patiently secrets create "$secret" --replication-policy=automatic --labels="$mark"
fi
on secrets "$secret"
grant "$dispatch" roles/secretmanager.secretAccessor
grant "$now" roles/secretmanager.secretAccessor
for address in $job_accounts; do
  if jobs_read_key; then
    grant "serviceAccount:$address" roles/secretmanager.secretAccessor
  elif [ "$address" = "$(account jobs)" ] && granted "serviceAccount:$address" roles/secretmanager.secretAccessor; then
    revoke "serviceAccount:$address" roles/secretmanager.secretAccessor # only from our own: another account may have the role for another purpose
  fi
done
versions=$(look secrets versions list "$secret" --format='value(state)')
for token in $(token_secrets); do
  on secrets "$token" || fail "vertex-launch.yaml names $token in git_token_secrets, and it cannot be used. See gcloud's message above."
  for address in $job_accounts; do
    grant "serviceAccount:$address" roles/secretmanager.secretAccessor
  done
done

buckets=$(look storage buckets list --format='value(name,labels.monitoring)')

make_bucket() { # make_bucket BUCKET REGION [FLAG]
  if ! grep -q "^$1\($tab\|$\)" <<<"$buckets"; then
    patiently storage buckets create "gs://$1" --location="$2" --uniform-bucket-level-access --public-access-prevention ${3:+"$3"}
    run storage buckets update "gs://$1" --update-labels="$mark"
  fi
}

# Every pass overwrites two small objects: kept versions would add up to thousands a day.
make_bucket "$state_bucket" "$region" --soft-delete-duration=0
on "storage buckets" "gs://$state_bucket"
grant "$dispatch" "projects/$project/roles/${id}_record"
grant "$now" "projects/$project/roles/${id}_record"
for job_region in ${job_regions//,/ }; do
  [ -n "$staging_buckets" ] || make_bucket "$project-$name-staging-$job_region" "$job_region"
done
for bucket in ${staging//,/ }; do
  on "storage buckets" "$bucket"
  for address in $job_accounts; do
    grant "serviceAccount:$address" roles/storage.objectUser
  done
done

repositories=$(look artifacts repositories list --location="$region" --format='value(name.basename(),cleanupPolicies.list())')

make_repository() { # make_repository NAME PURPOSE
  grep -q "^$name-$1\($tab\|$\)" <<<"$repositories" || patiently artifacts repositories create "$name-$1" --location="$region" --repository-format=docker \
    --labels="$mark" --description="$2"
}

make_repository images "Images that jobs of $name run"
make_repository functions "Images of the functions of $name"
# Each deployment of a function leaves an image. The last ones are enough to go back to.
cleanup='[{"name": "keep-last", "action": {"type": "Keep"}, "mostRecentVersions": {"keepCount": 5}},
  {"name": "delete-old", "action": {"type": "Delete"}, "condition": {"olderThan": "30d"}}]'
if [ -z "$(value_of "$repositories" "$name-functions")" ]; then
  echo "$cleanup" >"$work/cleanup.json"
  run artifacts repositories set-cleanup-policies "$name-functions" --location="$region" --policy="$work/cleanup.json" --no-dry-run --format=none
fi
on "artifacts repositories" "$name-functions" "--location=$region"
grant "$build" roles/artifactregistry.writer
on "artifacts repositories" "$name-images" "--location=$region"
grant "$vertex_agent" roles/artifactregistry.reader
# Google makes this one with the project's first job. By then it has a role from Google that covers the project's repositories.
granted "$custom_agent" roles/artifactregistry.reader ||
  change_policy run add "$custom_agent" roles/artifactregistry.reader --condition= 2>/dev/null ||
  echo "Google has not created ${custom_agent#*:} yet. No action is needed."

step "Topics"
topics=$(look pubsub topics list --format='value(name.basename())')
missing=''
for topic in ticks job-logs ticks-dead job-logs-dead; do
  has "$topics" "$name-$topic" || missing="$missing $name-$topic"
done
# shellcheck disable=SC2086  # one word for each
[ -z "$missing" ] || patiently pubsub topics create $missing --labels="$mark"
on "pubsub topics" "$name-ticks"
grant "$job_state" roles/pubsub.publisher

step "Metrics"
# Before the functions, because an alert on a new metric is refused for up to ten minutes.
# metrics/*.yaml, alerts/*.yaml and dashboard.json are in the form of Google's APIs, except for the placeholder ${name}. A label of
# the record's bucket holds the digest of what was deployed last: if it is the same, nothing is updated.
fill_in() { # fill_in FOLDER FILES: copy the files into that folder, with the name filled in
  local file folder=$work/$1
  mkdir "$folder" && shift
  for file in "$@"; do
    sed "s/\${name}/$name/g" "$file" >"$folder/$(basename "$file")"
  done
}
# shellcheck disable=SC2046  # one word for each
fill_in metrics $(find infra/monitoring/metrics -name '*.yaml')
# shellcheck disable=SC2046
fill_in alerts $(find infra/monitoring/alerts -name '*.yaml')
fill_in dashboards infra/monitoring/dashboard.json
files() { find "$work/$1" -type f | sort; } # files FOLDER
digest=$({ find "$work/metrics" "$work/alerts" "$work/dashboards" -type f | sort | xargs cat && echo "$channels"; } | sha)
changed=yes
[ "$(value_of "$buckets" "$state_bucket")" != "$digest" ] || changed=''
undone='' # what of the monitoring could not be done. Passes do not need it, so the rest is deployed.
not_done() { undone="$undone  $1"$'\n'; }

metrics=$(look logging metrics list --format='value(name)') || metrics=''
for file in $(files metrics); do
  metric=$(field name <"$file")
  if ! has "$metrics" "$metric"; then
    patiently logging metrics create "$metric" --config-from-file="$file" || not_done "the metric $metric"
  elif [ -n "$changed" ]; then
    run logging metrics update "$metric" --config-from-file="$file" || not_done "the metric $metric"
  fi
done

let_spread
deploy_functions

step "Who may call"
may_call() { # may_call FUNCTION MEMBERS
  local member
  on "run services" "$name-$1" "--region=$region"
  for member in $2; do
    grant "$member" roles/run.invoker
  done
  ! grep -q '^all\(Authenticated\)\{0,1\}Users'"$tab" <<<"$policy" ||
    echo "WARNING: anyone may call $name-$1. 'gcloud run services get-iam-policy $name-$1 --region=$region' shows why." >&2
}

may_call dispatch "$push"
may_call job-state "$push"
may_call dispatch-now "$invokers"

step "Subscriptions"
subscriptions=$(look pubsub subscriptions list --format='value(name.basename(),topic.basename(),pushConfig.pushEndpoint,
  pushConfig.oidcToken.serviceAccountEmail,pushConfig.oidcToken.audience,ackDeadlineSeconds,messageRetentionDuration,expirationPolicy.ttl,
  retryPolicy.minimumBackoff,retryPolicy.maximumBackoff,deadLetterPolicy.deadLetterTopic.basename(),deadLetterPolicy.maxDeliveryAttempts)')

# subscribe TOPIC WANTED FLAGS: create a subscription with the topic's name and these flags, which never expires. WANTED is how the
# list shows them; one that differs is updated.
subscribe() {
  local topic=$name-$1 wanted found
  wanted=$topic$tab$2
  shift 2
  found=$(value_of "$subscriptions" "$topic")
  [ "$found" != "$wanted" ] || return 0
  case $found in
    '') patiently pubsub subscriptions create "$topic" --topic="$topic" --expiration-period=never --labels="$mark" "$@" ;;
    "$topic$tab"*) run pubsub subscriptions update "$topic" --expiration-period=never "$@" ;;
    *) fail "the subscription $topic belongs to another topic than $topic. Delete it ('gcloud pubsub subscriptions delete $topic \
--project=$project') and run this again." ;;
  esac
}

columns() { (IFS=$tab && printf '%s' "$*"); } # columns WORDS: with tabs between them

# subscribe_function TOPIC URI SECONDS: push a topic's messages to a function. SECONDS must exceed the function's timeout. Messages
# that keep failing go to a dead-letter topic, where they are kept for someone to look at.
subscribe_function() {
  subscribe "$1-dead" "$(columns '' '' '' 60 604800s '' '' '' '' '')" --ack-deadline=60 --message-retention-duration=7d
  on "pubsub topics" "$name-$1-dead"
  grant "$pubsub_agent" roles/pubsub.publisher
  subscribe "$1" "$(columns "$2" "$(account push)" "$2" "$3" 86400s '' 10s 60s "$name-$1-dead" 20)" \
    --push-endpoint="$2" --push-auth-service-account="$(account push)" --push-auth-token-audience="$2" --ack-deadline="$3" \
    --message-retention-duration=1d --min-retry-delay=10s --max-retry-delay=60s \
    --dead-letter-topic="$name-$1-dead" --max-delivery-attempts=20
  on "pubsub subscriptions" "$name-$1"
  grant "$pubsub_agent" roles/pubsub.subscriber
}

subscribe_function ticks "$dispatch_uri" 130
subscribe_function job-logs "$job_state_uri" 70

step "Scheduler"
found=$(look scheduler jobs list --location="$region" --format='value(name.basename(),schedule,timeZone,pubsubTarget.topicName,pubsubTarget.data)')
found=$(value_of "$found" "$name-tick")
if [ -z "$schedule" ]; then
  schedule=$(cut -f 1 <<<"$found")
  schedule=${schedule:-* * * * *}
  [ "$schedule" = '* * * * *' ] || echo "Kept from the deployed job: --schedule='$schedule'"
fi
wanted=$(columns "$schedule" Etc/UTC "projects/$project/topics/$name-ticks" e30=)
if [ "$found" != "$wanted" ]; then
  if [ -z "$found" ]; then verb=create; else verb=update; fi
  patiently scheduler jobs "$verb" pubsub "$name-tick" --location="$region" --schedule="$schedule" --time-zone=Etc/UTC \
    --topic="projects/$project/topics/$name-ticks" --message-body='{}' --description="$made" --format=none
fi

step "Log sink"
# Log entries about the end of every job in the project, because they have no labels. job-state finds out which are ours.
filter=$(tr -s ' \n' ' ' <infra/job-ends.filter) # in one line, because it is compared below
filter=${filter% }
destination=pubsub.googleapis.com/projects/$project/topics/$name-job-logs
sinks=$(look logging sinks list --format='value(name,writerIdentity,destination,filter)')
found=$(value_of "$sinks" "$name-job-ends")
writer=${found%%"$tab"*}
if [ -z "$found" ]; then
  writer=$(patiently logging sinks create "$name-job-ends" "$destination" --log-filter="$filter" --description="$made" --format='value(writerIdentity)')
elif [ "$found" != "$(columns "$writer" "$destination" "$filter")" ]; then
  run logging sinks update "$name-job-ends" "$destination" --log-filter="$filter" --format=none
fi
on "pubsub topics" "$name-job-logs"
grant "${writer:-WRITER_OF_THE_SINK}" roles/pubsub.publisher

step "Dashboard and alerts"
dashboards=$(look monitoring dashboards list --format='value(displayName,name,etag)') || dashboards=''
for file in $(files dashboards); do
  found=$(value_of "$dashboards" "$(field displayName <"$file")")
  added="\"labels\": {\"$mark_key\": \"$name\"}"
  if [ -z "$found" ]; then
    sed "1s/{/{$added,/" "$file" >"$work/dashboard.json"
    patiently monitoring dashboards create --config-from-file="$work/dashboard.json" || not_done "the dashboard"
  elif [ -n "$changed" ]; then
    # An update must name the version of the dashboard that it replaces.
    sed "1s/{/{$added, \"etag\": \"${found#*"$tab"}\",/" "$file" >"$work/dashboard.json"
    run monitoring dashboards update "${found%%"$tab"*}" --config-from-file="$work/dashboard.json" || not_done "the dashboard"
  fi
done

tries=61 # ten minutes for all alerts together
alerts=$(look alpha monitoring policies list --format='value(displayName,name,notificationChannels.list())') || alerts=''
for file in $(files alerts); do
  alert=$(field displayName <"$file")
  found=$(value_of "$alerts" "$alert")
  if [ -z "$found" ]; then
    patiently alpha monitoring policies create --policy-from-file="$file" --user-labels="deployment=$name,$mark" \
      ${channels:+--notification-channels="$channels"} || { not_done "the alert $alert" && tries=1; }
  elif [ -n "$changed" ]; then
    # Keep channels that were added by hand.
    kept=${channels:-${found#*"$tab"}}
    run alpha monitoring policies update "${found%%"$tab"*}" --policy-from-file="$file" --update-user-labels="$mark" \
      ${kept:+--set-notification-channels="$kept"} || not_done "the alert $alert"
  fi
done
[ -z "$changed$undone" ] || [ -n "$undone" ] || run storage buckets update "gs://$state_bucket" --update-labels="monitoring=$digest" ||
  not_done "the label of the record's bucket"

step "Done"
if ! grep -qix enabled <<<"$versions"; then
  cat <<END
NOT READY YET: the secret $secret has no version. Add the W&B API key first, as step 1 shows.
END
fi
cat <<END
1. Add the W&B API key, now and whenever it changes (paste it, then press Enter and Ctrl-D):
  gcloud secrets versions add $secret --project=$project --data-file=-
2. Run the preflight before the first launch, with the environment of the functions:
$(sed -n "s/^\([A-Z_]*\): \"\(.*\)\"\$/  export \1='\2'/p" "$work/environment.yaml")
  pip install '.[preflight]'
  python -m vertex_launch check --as $(account dispatch)
3. Preview a pass, which changes nothing (for members named with --invoker):
  curl -X POST $dispatch_now_uri -H "Authorization: Bearer \$(gcloud auth print-identity-token)" -H 'Content-Type: application/json' -d '{"dry_run": true}'
4. Jobs run as $jobs_account, unless their queue's config names another account.
   Push images for jobs to: $region-docker.pkg.dev/$project/$name-images
END
if [ -n "$undone" ]; then
  fail "passes run, but this of the monitoring is missing; see gcloud's messages above, then run this again:"$'\n'"$undone"
fi
