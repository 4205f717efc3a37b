# What deploy.sh and destroy.sh share: options, names, and how gcloud is called. Sourced, never run.
# It keeps to what bash 3.2 knows, which is the one on macOS. Words are split where no quotes stand; nothing is a file pattern.
# shellcheck shell=bash disable=SC2034  # what is set here is used where it is sourced

tab=$(printf '\t')
region_form='^[a-z]+-[a-z]+[0-9]+$'
mark_key=deploy_sh                              # a label with the deployment's name, on everything that can have labels
made="Made by infra/deploy.sh of vertex-launch" # in the description of everything else
pause=${DEPLOY_PAUSE:-10}                       # seconds to wait for Google where it needs a moment

export LC_ALL=C # a to z are the 26 small letters, whatever the user's language
exec 3>&1       # where commands are shown, also those whose answer is read

fail() { # fail SENTENCE: say what is wrong, and end
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

step() { printf '\n== %s\n' "$*"; }

# Options

project='' region='' name=vertex-launch job_regions='' staging_buckets='' wandb_secret='' job_accounts='' dry_run=''

# shared_option NAME [VALUE]: take an option of both scripts; false where it is none of them.
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

# check_shared: what both scripts need to be true of the options before they begin, and the names that follow from them.
check_shared() {
  local address part
  setting api_key_delivery >/dev/null
  setting git_token_secrets >/dev/null
  [ -n "$project" ] || fail "--project is missing: the id of the project to deploy to. --help shows all options."
  [[ $project =~ ^[a-z][a-z0-9-]{4,28}[a-z0-9]$ ]] || fail "--project '$project' is no project id: 6 to 30 small letters, digits and hyphens. \
Write the id, neither the number nor the name; 'gcloud projects list' shows it."
  [ -n "$region" ] || fail "--region is missing: where the functions are, as us-central1."
  [[ $region =~ $region_form ]] || fail "--region '$region' is no region; write one like us-central1, neither a zone nor 'us'."
  [[ $name =~ ^[a-z][a-z0-9-]{1,15}[a-z0-9]$ ]] || fail "--name '$name' cannot be used: 3 to 17 small letters, digits and hyphens, a letter \
first, no hyphen last. Service accounts are called after it, and their ids end at 30 characters."
  job_regions=${job_regions:-$region}
  for part in ${job_regions//,/ }; do
    [[ $part =~ $region_form ]] || fail "--job-regions has '$part', which is no region; write them as us-central1,us-east4."
  done
  [ -z "$(tr ',' '\n' <<<"$job_regions" | sort | uniq -d)" ] || fail "--job-regions '$job_regions' names a region twice."
  for address in $job_accounts; do
    [[ $address =~ ^[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com$ ]] || fail "--job-account '$address' is no service account: \
write its address, as trainer@$project.iam.gserviceaccount.com."
  done
  [[ $wandb_secret =~ ^[A-Za-z0-9_-]*$ ]] || fail "--secret '$wandb_secret' is no name of a secret of the project: write it without \
'projects/…' and without a version."

  mark=$mark_key=$name
  id=${name//-/_} # in the ids of custom roles
  state_bucket=$project-$name-state
  secret=${wandb_secret:-$name-wandb-api-key}
  staging=''
  for part in ${job_regions//,/ }; do
    staging="$staging,gs://$project-$name-staging-$part"
  done
  staging=${staging_buckets:-${staging#,}} # in the order of the regions
  [ "$(tr -cd , <<<"$staging")" = "$(tr -cd , <<<"$job_regions")" ] || fail "--staging-buckets '$staging_buckets' has to have one \
bucket for each of --job-regions '$job_regions', in their order."
  for part in gs://$state_bucket ${staging//,/ }; do
    [[ $part =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || fail "--staging-buckets has '$part', which is no bucket; write them as gs://one,gs://two."
    [ ${#part} -le 68 ] || fail "the bucket ${part#gs://} would have a name of more than 63 characters. Choose a shorter --name, or make \
buckets yourself and name them with --staging-buckets."
  done
  [ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "gcloud is not installed; https://cloud.google.com/sdk/docs/install says how."
  export CLOUDSDK_CORE_DISABLE_PROMPTS=1
}

account() { printf '%s@%s.iam.gserviceaccount.com' "$name-$1" "$project"; } # account NAME: the address of one of ours

act_as() { # act_as ADDRESS: the role that lets the functions start jobs as this account; ours counts in this project only
  case $1 in
    *"@$project.iam."*) printf 'projects/%s/roles/%s_act_as' "$project" "$id" ;;
    *) printf roles/iam.serviceAccountUser ;;
  esac
}

# What vertex-launch.yaml lets jobs read

# setting NAME: of that file, the lines of one setting without comments, or nothing. Fails where it is written in a way that
# only a YAML parser understands, for a right that is missing is found when jobs fail.
setting() {
  [ ! -f vertex-launch.yaml ] || awk -v name="$1" '
    { sub(/(^|[ \t])#.*/, "") }
    index($0, name) && index($0, name ":") != 1 { exit 1 }
    /^[^ \t\r]/ { inside = index($0, name ":") == 1 }
    inside' vertex-launch.yaml || fail "vertex-launch.yaml: write $1 at the beginning of a line and a colon right after it; this \
script reads it there."
}

# jobs_read_key: whether the key stays out of the jobs' specs, so that they read it themselves.
jobs_read_key() { [ "$(setting api_key_delivery | tr -d "[:space:]\"'")" = api_key_delivery:secret ]; }

# token_secrets: the secrets with tokens for git, each once, by their full names: they may be another project's.
token_secrets() { { setting git_token_secrets | grep -Eo 'projects/[^/ ]+/secrets/[A-Za-z0-9_-]+' || true; } | sort -u; }

# gcloud

created='' # the words of all commands that created something

# run WORDS: gcloud, where it changes something. The command is shown first; a dry run goes no further.
run() {
  case " $* " in *" create "*) created="$created $* " ;; esac
  { printf '+ gcloud' && printf ' %q' "$@" "--project=$project" && printf '\n'; } >&3
  [ -n "$dry_run" ] || gcloud "$@" "--project=$project"
}

# patiently WORDS: the same for what needs an account or a metric that was made just now: it takes a while until Google knows
# it everywhere.
patiently() {
  for _ in 1 2 3 4 5; do
    if run "$@"; then return; fi
    echo "That did not work. What was made just now may not be known everywhere yet: trying again in $pause s." >&2
    sleep "$pause"
  done
  run "$@"
}

# look WORDS: gcloud, where it only reads. A dry run reads nothing, as if the project were empty.
look() { [ -n "$dry_run" ] || gcloud "$@" "--project=$project"; }

has() { grep -qxF -e "$2" <<<"$1"; } # has LIST LINE

# value_of LIST KEY: in lines of KEY, tab, VALUE, the first value for a key, or nothing.
value_of() { awk -F '\t' -v key="$2" '$1 == key { print substr($0, length(key) + 2); exit }' <<<"$1"; }

# field NAME: of YAML or JSON on stdin, the value of the first field of this name that stands at the beginning of a line.
field() { sed -n "/^[ {]*\"\{0,1\}$1\"\{0,1\}: */{s///;s/[\",']*\$//;s/^[\"']//;p;q;}"; }

# Rights

# on KIND NAME [FLAG]: the resource that `grant` and `revoke` are about from now on. Its policy is read once, and not at all
# where it was made just now. The kind is the gcloud group, several words as they are: on "pubsub topics" my-topic
on() {
  kind=$1 resource=$2 where=${3:-} policy=''
  case $created in *" $resource "*) return ;; esac
  # shellcheck disable=SC2086  # the words of the group
  policy=$(look $kind get-iam-policy "$resource" ${where:+"$where"} --flatten='bindings[].members' \
    --format='value(bindings.members,bindings.role,bindings.condition.title)')
}

# granted MEMBER ROLE [TITLE]: whether the resource's policy says so, under the condition of that title or under none.
granted() { has "$policy" "$1$tab$2$tab${3:-}"; }

# grant MEMBER ROLE [TITLE EXPRESSION]: on the resource, unless it is granted; under that condition where one is given.
grant() {
  granted "$1" "$2" "${3:-}" || change_policy patiently add "$1" "$2" "--condition=${3:+expression=$4,title=$3}"
}

# revoke MEMBER ROLE [TITLE]: takes back what `grant` gave.
revoke() {
  if [ -n "$dry_run" ] || granted "$1" "$2" "${3:-}"; then
    if [ -n "${3:-}" ]; then change_policy run remove "$1" "$2" --all; else change_policy run remove "$1" "$2" --condition=; fi
  fi
}

# change_policy HOW add|remove MEMBER ROLE CONDITION
change_policy() {
  local condition=$5
  [ "$condition" != --condition= ] || condition=--condition=None # without it gcloud would ask where others have conditions
  case $kind in pubsub*) condition='' ;; esac                    # which has none
  # shellcheck disable=SC2086  # the words of the group
  "$1" $kind "$2-iam-policy-binding" "$resource" ${where:+"$where"} --member="$3" --role="$4" ${condition:+"$condition"} --format=none
}
