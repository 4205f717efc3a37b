# Accounts and roles. Each function, Pub/Sub's pushes, builds and jobs have an account of their own, and each role is granted on
# one resource. Roles on the project are for things without a policy: custom jobs, logs, and what does not exist before its first use.

data "google_project" "this" {
  project_id = var.project
}

resource "google_project_service" "this" {
  for_each = var.enable_apis ? toset(concat(
    [
      "aiplatform", "artifactregistry", "cloudbuild", "cloudfunctions", "cloudresourcemanager", "cloudscheduler", "iam",
      "logging", "monitoring", "pubsub", "run", "secretmanager", "storage",
    ],
    var.vpc_connector == null ? [] : ["vpcaccess"],
  )) : []

  project            = var.project
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false # others in the project may use them
}

locals {
  accounts = merge(
    {
      dispatch  = "Runs passes of ${var.name} for ticks"
      now       = "Runs passes of ${var.name} for people"
      job-state = "Looks up ended jobs of ${var.name}"
      push      = "Pushes messages to functions of ${var.name}"
      build     = "Builds functions of ${var.name}"
    },
    var.deploy_with_cloud_build ? { deploy = "Deploys functions of ${var.name} from Cloud Build", test = "Tests ${var.name} in Cloud Build" } : {},
    coalesce(var.create_job_service_account, length(var.job_service_accounts) == 0) ? { jobs = "Jobs of ${var.name} run as this account" } : {},
  )
  emails = { for key, account in google_service_account.this : key => "${account.account_id}@${account.project}.iam.gserviceaccount.com" }

  # The two accounts that run passes, and the accounts that jobs may run as.
  dispatchers = ["dispatch", "now"]
  job_emails = merge(
    { for key, email in local.emails : key => email if key == "jobs" },
    { for email in var.job_service_accounts : email => email },
  )

  # The account of jobs whose run spec names none: NAME-jobs, else the one of vertex-launch.yaml, else the first.
  jobs_account = try(
    local.emails["jobs"],
    [for email in var.job_service_accounts : email if email == local.settings.jobs_account][0],
    sort(tolist(var.job_service_accounts))[0],
    "",
  )

  # The secrets that a job's bootstrap reads with the job's account, by full name: the key, if the settings keep it out of jobs'
  # specs, and each git token. Hosts may share a token. The preflight and the functions report names that are not secrets.
  job_secrets = merge(
    { for secret in toset(flatten([for version in concat(try(values(local.settings.git_token_secrets), []), [for host in try(values(local.settings.git_hosts), []) : try(host.token_secret, "")]) : regexall("^projects/[^/]+/secrets/[A-Za-z0-9_-]+", version)])) : secret => split("/", secret) },
    try(local.settings.api_key_delivery, "env") == "secret" ? { "the W&B key" = local.secret_parts } : {},
  )

  read_job_logs = coalesce(var.read_job_logs, try(tonumber(local.settings.log_lines), 0) > 0)

  # Google gives Vertex AI's own accounts a role that covers the repositories of their project, so only others need a binding.
  vertex_agents = var.vertex_agents != null ? var.vertex_agents : local.images_repository_parts[1] == var.project ? [] : [
    "service-${data.google_project.this.number}@gcp-sa-aiplatform.iam.gserviceaccount.com",
    "service-${data.google_project.this.number}@gcp-sa-aiplatform-cc.iam.gserviceaccount.com",
  ]

  # In conditions: these buckets themselves, or their objects cannot be listed, and what is in them.
  bucket_only = {
    for key, bucket in {
      sources = "gcf-v2-sources-${data.google_project.this.number}-${var.region}"
      builds  = "${var.project}_cloudbuild"
    } : key => "resource.name == \"projects/_/buckets/${bucket}\" || resource.name.startsWith(\"projects/_/buckets/${bucket}/\")"
  }
}

resource "google_service_account" "this" {
  for_each = local.accounts

  project      = var.project
  account_id   = "${var.name}-${each.key}"
  display_name = each.value

  depends_on = [google_project_service.this]
}

# Custom roles, each with exactly the permissions that are used.

locals {
  roles = merge(
    {
      dispatch = {
        title       = "submit jobs"
        permissions = ["aiplatform.customJobs.cancel", "aiplatform.customJobs.create", "aiplatform.customJobs.get", "aiplatform.customJobs.list"]
      }
      job_state = {
        title       = "look up jobs"
        permissions = ["aiplatform.customJobs.get"]
      }
      record = {
        title = "keep the record"
        # Overwriting includes deleting. Without list, Cloud Storage answers 403 instead of 404 for a missing object.
        permissions = ["storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list"]
      }
      act_as = {
        title       = "run something as an account"
        permissions = ["iam.serviceAccounts.actAs"]
      }
    },
    local.read_job_logs ? {
      job_logs = {
        title       = "read the last lines of failed jobs"
        permissions = ["logging.logEntries.list"]
      }
    } : {},
  )
  role_names = { for key, role in google_project_iam_custom_role.this : key => "projects/${role.project}/roles/${role.role_id}" }
}

resource "google_project_iam_custom_role" "this" {
  for_each = local.roles

  project     = var.project
  role_id     = "${replace(var.name, "-", "_")}_${each.key}${var.role_suffix}"
  title       = "${var.name}: ${each.value.title}"
  permissions = each.value.permissions

  depends_on = [google_project_service.this]
}

# Functions: jobs

resource "google_project_iam_member" "jobs" {
  for_each = { dispatch = "dispatch", now = "dispatch", job-state = "job_state" }

  project = var.project
  role    = local.role_names[each.value]
  member  = "serviceAccount:${local.emails[each.key]}"
}

resource "google_project_iam_member" "job_logs" {
  for_each = toset(local.read_job_logs ? local.dispatchers : [])

  project = var.project
  role    = local.role_names["job_logs"]
  member  = "serviceAccount:${local.emails[each.key]}"
}

# Submitting a job requires permission to act as the account that it runs as. An account's address contains its project; our
# custom role does not exist in another project.
resource "google_service_account_iam_member" "act_as_job_accounts" {
  for_each = {
    for pair in setproduct(local.dispatchers, keys(local.job_emails)) : "${pair[0]} as ${pair[1]}" => {
      who     = pair[0]
      whom    = local.job_emails[pair[1]]
      project = try(regex("@([a-z0-9-]+)\\.iam\\.", local.job_emails[pair[1]])[0], var.project)
    }
  }

  service_account_id = "projects/${each.value.project}/serviceAccounts/${each.value.whom}"
  role               = each.value.project == var.project ? local.role_names["act_as"] : "roles/iam.serviceAccountUser"
  member             = "serviceAccount:${local.emails[each.value.who]}"
}

# Functions: the key, the record, ticks

resource "google_secret_manager_secret_iam_member" "dispatchers_read_key" {
  for_each = toset(local.dispatchers)

  project   = local.secret_parts[1]
  secret_id = local.secret_parts[3]
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${local.emails[each.key]}"
}

resource "google_storage_bucket_iam_member" "dispatchers_keep_record" {
  for_each = toset(local.dispatchers)

  bucket = local.record_bucket
  role   = local.role_names["record"]
  member = "serviceAccount:${local.emails[each.key]}"
}

resource "google_pubsub_topic_iam_member" "job_state_publishes_ticks" {
  project = var.project
  topic   = google_pubsub_topic.this["ticks"].name
  role    = "roles/pubsub.publisher"
  member  = "serviceAccount:${local.emails["job-state"]}"
}

# Who may call the functions: Pub/Sub's pushes two of them, the invokers the third. Each is a Cloud Run service with its name.

resource "google_cloud_run_v2_service_iam_member" "push" {
  for_each = local.pushes

  project  = var.project
  location = var.region
  name     = google_cloudfunctions2_function.this[each.value.function].name
  role     = "roles/run.invoker"
  member   = "serviceAccount:${local.emails["push"]}"
}

resource "google_cloud_run_v2_service_iam_member" "invokers" {
  for_each = var.invokers

  project  = var.project
  location = var.region
  name     = google_cloudfunctions2_function.this["dispatch-now"].name
  role     = "roles/run.invoker"
  member   = each.key
}

# Jobs: their output, their images, and the secrets that the settings let them read (none by default)

resource "google_storage_bucket_iam_member" "jobs_write_output" {
  for_each = {
    for pair in setproduct(keys(local.job_emails), local.job_regions) : "${pair[0]} in ${pair[1]}" => { email = local.job_emails[pair[0]], region = pair[1] }
  }

  bucket = local.staging_buckets[each.value.region]
  role   = "roles/storage.objectUser"
  member = "serviceAccount:${each.value.email}"
}

resource "google_secret_manager_secret_iam_member" "jobs_read_secrets" {
  for_each = {
    for pair in setproduct(keys(local.job_emails), keys(local.job_secrets)) : "${pair[0]} reads ${pair[1]}" => { email = local.job_emails[pair[0]], secret = local.job_secrets[pair[1]] }
  }

  project   = each.value.secret[1]
  secret_id = each.value.secret[3]
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${each.value.email}"
}

# Google's own account pulls a job's image, not the account that the job runs as.
resource "google_artifact_registry_repository_iam_member" "vertex_reads_images" {
  for_each = toset(local.vertex_agents)

  project    = local.images_repository_parts[1]
  location   = local.images_repository_parts[3]
  repository = local.images_repository_parts[5]
  role       = "roles/artifactregistry.reader"
  member     = "serviceAccount:${each.key}"
}

# Pub/Sub's own account authenticates pushes with tokens of the push account, and moves dead letters. In a new project it does not exist
# before it is asked for, which only the provider google-beta can do. Whoever applies this has gcloud; if not, README.md says what to do.
resource "terraform_data" "pubsub_agent" {
  count = var.create_pubsub_agent ? 1 : 0

  input = "gcloud beta services identity create --service=pubsub.googleapis.com --project=${var.project}"

  provisioner "local-exec" {
    command     = self.input
    on_failure  = continue # it may exist; if it does not, the first role for it is refused with its name
    environment = { CLOUDSDK_CORE_DISABLE_PROMPTS = "1" }
  }

  depends_on = [google_project_service.this]
}

resource "google_service_account_iam_member" "pubsub_makes_tokens" {
  service_account_id = "projects/${var.project}/serviceAccounts/${local.emails["push"]}"
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.pubsub_agent

  depends_on = [terraform_data.pubsub_agent]
}

# Builds of the functions

resource "google_project_iam_member" "build_writes_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = "serviceAccount:${local.emails["build"]}"
}

resource "google_artifact_registry_repository_iam_member" "build_writes_images" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.functions.repository_id
  role       = "roles/artifactregistry.writer"
  member     = "serviceAccount:${local.emails["build"]}"
}

resource "google_storage_bucket_iam_member" "build_reads_source" {
  bucket = local.source_object.bucket
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${local.emails["build"]}"
}

# Cloud Functions copies the source into a bucket of its own and builds from there. That bucket does not exist before the region's
# first function, so the role is granted on the project with a condition that is as narrow.
resource "google_project_iam_member" "build_reads_platform_sources" {
  project = var.project
  role    = "roles/storage.objectViewer"
  member  = "serviceAccount:${local.emails["build"]}"

  condition {
    title      = "${var.name}-sources"
    expression = local.bucket_only["sources"]
  }
}

# Testing and deploying in Cloud Build, if enabled. What builds and tests run must not deploy, so each has an account of its own.
# Functions may be created again, so the role is granted on the project. Deploying requires permission to act as each account that a
# function runs as or is built as.

resource "google_project_iam_member" "deploy_deploys" {
  count = var.deploy_with_cloud_build ? 1 : 0

  project = var.project
  role    = "roles/cloudfunctions.developer"
  member  = "serviceAccount:${local.emails["deploy"]}"
}

resource "google_project_iam_member" "cloud_build_writes_logs" {
  for_each = toset(var.deploy_with_cloud_build ? ["deploy", "test"] : [])

  project = var.project
  role    = "roles/logging.logWriter"
  member  = "serviceAccount:${local.emails[each.key]}"
}

# `gcloud builds submit` uploads the checkout to a bucket with this name, and creates it if it is missing.
resource "google_project_iam_member" "cloud_build_reads_checkout" {
  for_each = toset(var.deploy_with_cloud_build ? ["deploy", "test"] : [])

  project = var.project
  role    = "roles/storage.objectViewer"
  member  = "serviceAccount:${local.emails[each.key]}"

  condition {
    title      = "${var.name}-builds"
    expression = local.bucket_only["builds"]
  }
}

resource "google_service_account_iam_member" "deploy_acts_as" {
  for_each = toset(var.deploy_with_cloud_build ? ["dispatch", "now", "job-state", "build"] : [])

  service_account_id = "projects/${var.project}/serviceAccounts/${local.emails[each.key]}"
  role               = local.role_names["act_as"]
  member             = "serviceAccount:${local.emails["deploy"]}"
}
