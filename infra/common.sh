# What deploy.sh and destroy.sh share: options, names, and how gcloud is called. Sourced, never run.
# Limited to bash 3.2, the version on macOS. Unquoted variables are split into words on purpose; file patterns are off.
# shellcheck shell=bash disable=SC2034  # what is set here is used by the scripts that source it

tab=$(printf '\t')
region_form='^[a-z]+-[a-z]+[0-9]+$'
mark_key=deploy_sh                              # a label with the deployment's name, on everything that can have labels
made="Made by infra/deploy.sh of vertex-launch" # in the description of everything else
pause=${DEPLOY_PAUSE:-10}                       # seconds between two tries of something that needs a new account, role or metric
tries=18                                        # 18 x 10 s: new accounts and roles usually work after one minute, at most after some

export LC_ALL=C # a to z are the 26 lower-case letters, whatever the user's language
exec 3>&1       # commands are shown here, including those whose output is read

fail() { # fail SENTENCE: print what is wrong, and stop
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

step() { printf '\n== %s\n' "$*"; }

# Options

project='' region='' name=vertex-launch job_regions='' staging_buckets='' wandb_secret='' job_accounts='' dry_run=''

# shared_option NAME [VALUE]: take an option of both scripts; false for any other.
shared_option() {
  case $1 in
    --project) project=$2 ;;
    --region) region=$2 ;;
    --name) name=$2 ;;
    --job-regions) job_regions=$2 ;;
    --staging-buckets) staging_buckets=$2 ;;
    --secret) wandb_secret=$2 ;;
    --job-account) job_accounts="$job_accounts$2 " ;;
    *) return 1 ;;
  esac
}

# check_options: check the options of both scripts, before anything is done.
check_options() {
  local address part
  setting api_key_delivery >/dev/null
  setting git_token_secrets >/dev/null
  setting git_hosts >/dev/null
  [ -n "$project" ] || fail "--project is missing: the id of the project to deploy to. --help lists all options."
  [[ $project =~ ^[a-z][a-z0-9-]{4,28}[a-z0-9]$ ]] || fail "--project '$project' is not a project id: 6 to 30 lower-case letters, digits \
and hyphens. Use the id, not the number or the name; 'gcloud projects list' shows it."
  [ -n "$region" ] || fail "--region is missing: the region of the functions, such as us-central1."
  [[ $region =~ $region_form ]] || fail "--region '$region' is not a region. Use one such as us-central1, not a zone or 'us'."
  [[ $name =~ ^[a-z][a-z0-9-]{1,15}[a-z0-9]$ ]] || fail "--name '$name' cannot be used: 3 to 17 lower-case letters, digits and hyphens, a \
letter first, no hyphen last. Service accounts are named after it, and their ids are limited to 30 characters."
  for part in ${job_regions//,/ }; do
    [[ $part =~ $region_form ]] || fail "--job-regions has '$part', which is not a region. Write them as us-central1,us-east4."
  done
  [ -z "$(tr ',' '\n' <<<"$job_regions" | sort | uniq -d)" ] || fail "--job-regions '$job_regions' names a region twice."
  for part in ${staging_buckets//,/ }; do
    [[ $part =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || fail "--staging-buckets has '$part', which is not a bucket. Write them as gs://one,gs://two."
  done
  for part in ${staging_buckets//,/ }; do
    [ "$part" != "gs://$project-$name-state" ] || fail "--staging-buckets has '$part', the bucket of the record, which no job may write to. \
Name another bucket."
  done
  for address in $job_accounts; do
    [[ $address =~ ^[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com$ ]] || fail "--job-account '$address' is not a service account. \
Use its address, such as trainer@$project.iam.gserviceaccount.com."
  done
  [[ $wandb_secret =~ ^[A-Za-z0-9_-]*$ ]] || fail "--secret '$wandb_secret' is not the name of a secret of the project. Write it without \
'projects/…' and without a version."
  [ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "gcloud is not installed. See https://cloud.google.com/sdk/docs/install."
  export CLOUDSDK_CORE_DISABLE_PROMPTS=1

  mark=$mark_key=$name
  id=${name//-/_} # in the ids of custom roles
  state_bucket=$project-$name-state
}

# own_buckets: the staging buckets that the deployment makes for $job_regions, in their order.
own_buckets() {
  local part found=''
  for part in ${job_regions//,/ }; do
    found="$found,gs://$project-$name-staging-$part"
  done
  printf %s "${found#,}"
}

functions='' kept=''

# keep OPTION VARIABLE VALUE: use the deployed value of an option that is not given.
keep() {
  if [ -z "${!2}" ] && [ -n "$3" ]; then
    printf -v "$2" %s "$3"
    kept="$kept $1=$3"
  fi
}

# deployed COLUMN: a column of $functions for the function dispatch, after its name; empty if it does not exist.
deployed() { value_of "$functions" "$name-dispatch" | cut -f "$1"; }

# cannot_keep SENTENCE: the functions have what no option can express, so deploying them again would silently change it.
cannot_keep() { fail "$@"; }

# keep_deployed: read the deployed functions into $functions, and keep what they were deployed with.
keep_deployed() {
  local regions value
  functions=$(look functions list --v2 --regions="$region" --format='value(name.basename(),state,labels.digest,serviceConfig.uri,
    serviceConfig.environmentVariables.GOOGLE_CLOUD_REGION,serviceConfig.environmentVariables.STAGING_BUCKETS,
    serviceConfig.environmentVariables.STATE_BUCKET,serviceConfig.environmentVariables.WANDB_API_KEY_SECRET,
    serviceConfig.environmentVariables.WANDB_BASE_URL,serviceConfig.availableMemory,serviceConfig.vpcConnector,serviceConfig.timeoutSeconds,
    serviceConfig.environmentVariables.JOBS_ACCOUNT,serviceConfig.ingressSettings)')
  value=$(deployed 6)
  [ -n "$value" ] || return 0 # there is no function yet, or its first deployment failed
  [ "$value" = "gs://$state_bucket" ] || cannot_keep "$name-dispatch keeps its record in $value, and this script would start an empty one in \
gs://$state_bucket. Deploy it with the Terraform configuration that made it."
  value=$(deployed 11)
  [ "$value" = 120 ] || cannot_keep "$name-dispatch has a timeout of $value s, and this script would set 120 s. Deploy it with the Terraform \
configuration that made it, or set the timeout to 120 s first."
  regions=$(deployed 4)
  [ "$regions" = "$region" ] || keep --job-regions job_regions "$regions"
  job_regions=${job_regions:-$region}
  value=$(deployed 5)
  if [ -z "$staging_buckets" ] && [ "$value" != "$(job_regions=$regions own_buckets)" ]; then
    [ "$regions" = "$job_regions" ] || cannot_keep "the deployed job regions '$regions' have staging buckets of yours, $value. Name one for each \
of '$job_regions' with --staging-buckets."
    keep --staging-buckets staging_buckets "$value"
  fi
  value=$(deployed 7)
  if [ -z "$wandb_secret" ] && [ "$value" != "projects/$project/secrets/$name-wandb-api-key/versions/latest" ]; then
    if [[ $value =~ ^projects/$project/secrets/([^/]+)/versions/latest$ ]]; then
      keep --secret wandb_secret "${BASH_REMATCH[1]}"
    else
      cannot_keep "$name-dispatch reads the W&B API key from $value, which --secret cannot name. Deploy it with the Terraform \
configuration that made it, or name a secret of $project with --secret."
    fi
  fi
}

# set_names: the names that follow from the options and from what is kept.
set_names() {
  local part
  job_regions=${job_regions:-$region}
  secret=${wandb_secret:-$name-wandb-api-key}
  staging=${staging_buckets:-$(own_buckets)} # in the order of the regions
  [ "$(tr -cd , <<<"$staging")" = "$(tr -cd , <<<"$job_regions")" ] || fail "--staging-buckets '$staging_buckets' must have one bucket \
for each of the job regions '$job_regions', in their order."
  for part in gs://$state_bucket ${staging//,/ }; do
    [ ${#part} -le 68 ] || fail "the bucket ${part#gs://} would have a name of more than 63 characters. Choose a shorter --name, or \
create the buckets yourself and name them with --staging-buckets."
  done
}

account() { printf '%s@%s.iam.gserviceaccount.com' "$name-$1" "$project"; } # account NAME: the address of one of ours

act_as() { # act_as ADDRESS: the role that lets the functions start jobs as this account; our custom role exists in this project only
  case $1 in
    *"@$project.iam."*) printf 'projects/%s/roles/%s_act_as' "$project" "$id" ;;
    *) printf roles/iam.serviceAccountUser ;;
  esac
}

# bucket_only BUCKET: a condition for a role on the project: this bucket, whose objects can be listed, and its objects.
bucket_only() {
  printf 'resource.name == "projects/_/buckets/%s" || resource.name.startsWith("projects/_/buckets/%s/")' "$1" "$1"
}

# What vertex-launch.yaml lets jobs read

# setting NAME: the lines of one setting in that file, without comments. Stops if only a YAML parser understands how it is written,
# because a missing role would be found only when jobs fail.
setting() {
  [ ! -f vertex-launch.yaml ] || awk -v name="$1" '
    { sub(/(^|[ \t])#.*/, "") }
    index($0, name) && index($0, name ":") != 1 { exit 1 }
    /^[^ \t\r]/ { inside = index($0, name ":") == 1 }
    inside' vertex-launch.yaml || fail "vertex-launch.yaml: write $1 at the beginning of a line, with a colon right after it. This \
script finds it only there."
}

# jobs_read_key: whether jobs read the key themselves, because it is not in their specs.
jobs_read_key() { [ "$(setting api_key_delivery | tr -d "[:space:]\"'")" = api_key_delivery:secret ]; }

# token_secrets: the secrets with tokens for git, each once, by their full names, because they may belong to another project.
token_secrets() { { { setting git_token_secrets; setting git_hosts; } | grep -Eo 'projects/[^/ ]+/secrets/[A-Za-z0-9_-]+' || true; } | sort -u; }

# gcloud

created='' # the words of all commands that created something
note_created() { case " $* " in *" create "*) created="$created $* " ;; esac }

# run WORDS: call gcloud to change something. The command is printed first; a dry run only prints it.
run() {
  note_created "$@"
  { printf '+ gcloud' && printf ' %q' "$@" "--project=$project" && printf '\n'; } >&3
  [ -n "$dry_run" ] || gcloud "$@" "--project=$project"
}

# patiently WORDS: the same, with at most $tries tries, for commands that need a new account, role or metric: Google takes a while to
# know it everywhere. Other errors end it at once.
patiently() {
  local said left=$tries
  note_created "$@" # here as well, because it runs in a subshell below
  while :; do
    if { said=$(run "$@" 2>&1 >&4); } 4>&1; then break; fi
    printf '%s\n' "$said" >&2
    left=$((left - 1))
    if [ "$left" -le 0 ] || ! grep -qiE "$passing" <<<"$said"; then return 1; fi
    echo "Something new may not be known everywhere yet. Trying again in $pause s." >&2
    sleep "$pause"
  done
  [ -z "$said" ] || printf '%s\n' "$said" >&2
}
passing='not exist|not.?found|cannot find|denied|permission|precondition|not been used|conflict|concurrent|abort|unavailable|internal error|deadline'

# let_spread: wait until the roles that this run has granted should work, before something that cannot simply be tried again.
let_spread() {
  local left
  [ -n "$granted_at" ] || return 0
  left=$((9 * pause - SECONDS + granted_at))
  [ "$left" -gt 0 ] || return 0
  echo "Waiting $left s, because new roles take a while to work."
  [ -n "$dry_run" ] || sleep "$left"
}
granted_at='' # when this run granted the last role, in seconds after its start

# look WORDS: call gcloud to read something. A dry run reads nothing, as if the project were empty. An API that this run has enabled
# may not be known everywhere yet.
look() {
  local said left=$tries
  [ -z "$dry_run" ] || return 0
  until { said=$(gcloud "$@" "--project=$project" 2>&1 >&4); } 4>&1; do
    printf '%s\n' "$said" >&2
    left=$((left - 1))
    if [ -z "$enabled_apis" ] || [ "$left" -le 0 ] || ! grep -qi 'not been used' <<<"$said"; then return 1; fi
    sleep "$pause"
  done
  [ -z "$said" ] || printf '%s\n' "$said" >&2
}
enabled_apis='' # those that this run has enabled

has() { grep -qxF -e "$2" <<<"$1"; } # has LIST LINE

# value_of LIST KEY: the first value for a key in lines of KEY, tab, VALUE; empty if there is none.
value_of() { awk -F '\t' -v key="$2" '$1 == key { print substr($0, length(key) + 2); exit }' <<<"$1"; }

# field NAME: the value of the first field of this name at the beginning of a line, in YAML or JSON on stdin.
field() { sed -n "/^[ {]*\"\{0,1\}$1\"\{0,1\}: */{s///;s/[\",']*\$//;s/^[\"']//;p;q;}"; }

# Roles

# on KIND NAME [FLAG]: choose the resource for `grant` and `revoke`. Its policy is read once, and not at all if it was created by
# this run. The kind is the gcloud group, which may have several words: on "pubsub topics" my-topic
on() {
  kind=$1 resource=$2 where=${3:-} policy=''
  local short=${resource%"@$project.iam.gserviceaccount.com"} # how accounts are named when they are created
  case $created in *" $resource "* | *" service-accounts create $short "*) return ;; esac
  local left=$tries
  # shellcheck disable=SC2086  # the words of the group
  until policy=$(look $kind get-iam-policy "$resource" ${where:+"$where"} --flatten='bindings[].members' \
    --format='value(bindings.members,bindings.role,bindings.condition.title,bindings.condition.expression)'); do
    left=$((left - 1))
    # One of our accounts that the run before this one has made: at first Google denies its policy.
    case $kind/$short in "iam service-accounts/$name-"*) [ "$left" -gt 0 ] || return 1 ;; *) return 1 ;; esac
    sleep "$pause"
  done
}

# granted MEMBER ROLE [TITLE [EXPRESSION]]: whether the resource's policy grants it, under the condition with that title (and that
# expression, if it is given) or unconditionally.
granted() {
  MEMBER=$1 ROLE=$2 TITLE=${3:-} EXPRESSION=${4:-} awk -F '\t' '
    $1 == ENVIRON["MEMBER"] && $2 == ENVIRON["ROLE"] && $3 == ENVIRON["TITLE"] &&
      (ENVIRON["EXPRESSION"] == "" || $4 == ENVIRON["EXPRESSION"]) { found = 1 }
    END { exit !found }' <<<"$policy"
}

# grant MEMBER ROLE [TITLE EXPRESSION]: grant it on the resource, unless it is granted; under that condition if one is given.
grant() {
  if granted "$@"; then return; fi
  change_policy patiently add "$1" "$2" "--condition=${3:+expression=$4,title=$3}"
  granted_at=$SECONDS
}

# revoke MEMBER ROLE [TITLE]: undo `grant`.
revoke() {
  if [ -n "$dry_run" ] || granted "$1" "$2" "${3:-}"; then
    if [ -n "${3:-}" ]; then change_policy run remove "$1" "$2" --all; else change_policy run remove "$1" "$2" --condition=; fi
  fi
}

# change_policy HOW add|remove MEMBER ROLE CONDITION
change_policy() {
  local condition=$5
  [ "$condition" != --condition= ] || condition=--condition=None # without it gcloud would prompt if other bindings have conditions
  case $kind in pubsub*) condition='' ;; esac                    # Pub/Sub has no conditions
  # shellcheck disable=SC2086  # the words of the group
  "$1" $kind "$2-iam-policy-binding" "$resource" ${where:+"$where"} --member="$3" --role="$4" ${condition:+"$condition"} --format=none
}
