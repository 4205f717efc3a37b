# The three functions and their code.

locals {
  # Names of the functions without the prefix. Those that run passes have one instance and one request at a time: only one pass can
  # run anyway, and a message that waits in Pub/Sub costs nothing.
  functions = {
    dispatch = {
      entry_point   = "dispatch"
      account       = "dispatch"
      description   = "Runs a pass for each tick."
      timeout       = var.dispatch_timeout
      memory        = var.dispatch_memory
      max_instances = 1
      ingress       = "ALLOW_INTERNAL_ONLY" # Pub/Sub of the same project is internal
    }
    dispatch-now = {
      entry_point   = "dispatch_now"
      account       = "now"
      description   = "Runs a pass at once, for a person."
      timeout       = var.dispatch_timeout
      memory        = var.dispatch_memory
      max_instances = 1
      ingress       = var.dispatch_now_ingress # people call it; IAM decides who may
    }
    job-state = {
      entry_point   = "job_state"
      account       = "job-state"
      description   = "Requests a pass when one of the deployment's jobs has ended."
      timeout       = var.job_state_timeout
      memory        = "512Mi"
      max_instances = 3
      ingress       = "ALLOW_INTERNAL_ONLY"
    }
  }

  # Only the secret's name: anyone who may view a function sees its environment, so the key must not be in it.
  environment = merge(
    {
      GOOGLE_CLOUD_PROJECT     = var.project
      GOOGLE_CLOUD_REGION      = join(",", local.job_regions)
      STAGING_BUCKETS          = join(",", [for region in local.job_regions : "gs://${local.staging_buckets[region]}"])
      JOBS_ACCOUNT             = local.jobs_account
      STATE_BUCKET             = "gs://${local.record_bucket}"
      DISPATCH_TOPIC           = local.topics["ticks"]
      WANDB_API_KEY_SECRET     = "${local.secret}/versions/latest"
      VERTEX_LAUNCH_DEPLOYMENT = var.name
    },
    var.wandb_base_url == null ? {} : { WANDB_BASE_URL = var.wandb_base_url },
  )

  job_regions = length(var.job_regions) > 0 ? var.job_regions : [var.region]

  # The code: only files that run.
  checkout        = "${path.module}/.."
  launch_config   = coalesce(var.launch_config, "${local.checkout}/launch-config.yaml")
  launch          = yamldecode(file(local.launch_config))
  settings_file   = coalesce(var.vertex_launch_config, "${local.checkout}/vertex-launch.yaml")
  settings_exists = fileexists(local.settings_file) # the environment may replace it
  settings        = local.settings_exists ? yamldecode(file(local.settings_file)) : null
  source_files = merge(
    { for path in setunion(["main.py", "requirements.txt"], fileset(local.checkout, "vertex_launch/**/*.py")) : path => "${local.checkout}/${path}" },
    { "launch-config.yaml" = local.launch_config },
    local.settings_exists ? { "vertex-launch.yaml" = local.settings_file } : {},
  )
  source_object = var.source_object != null ? var.source_object : {
    bucket     = one(google_storage_bucket.source[*].name)
    object     = one(google_storage_bucket_object.source[*].name)
    generation = null
  }

  # The longest pass according to vertex-launch.yaml, with its defaults.
  longest_pass = (
    try(tonumber(local.settings.timeouts.pass_budget), 45) +
    try(tonumber(local.settings.timeouts.create), 20) +
    try(tonumber(local.settings.timeouts.margin), 10)
  )
}

data "archive_file" "source" {
  count = var.source_object == null ? 1 : 0

  type        = "zip"
  output_path = "${path.root}/.terraform/${var.name}-source.zip"

  dynamic "source" {
    for_each = local.source_files
    content {
      filename = source.key
      content  = file(source.value)
    }
  }
}

# Named after its content: new code is a new object, so the functions are deployed again.
resource "google_storage_bucket_object" "source" {
  count = var.source_object == null ? 1 : 0

  bucket = google_storage_bucket.source[0].name
  name   = "source-${data.archive_file.source[0].output_sha256}.zip"
  source = data.archive_file.source[0].output_path

  lifecycle {
    create_before_destroy = true # the functions refer to the old one until they are deployed again
    precondition {
      condition     = !strcontains(jsonencode(local.launch), "YOUR-")
      error_message = "${local.launch_config} still has a placeholder such as YOUR-TEAM. Write your W&B team and your queues there."
    }
  }
}

resource "google_cloudfunctions2_function" "this" {
  for_each = local.functions

  project     = var.project
  location    = var.region
  name        = "${var.name}-${each.key}"
  description = each.value.description
  labels      = var.labels

  build_config {
    runtime           = "python313"
    entry_point       = each.value.entry_point
    service_account   = "projects/${var.project}/serviceAccounts/${local.emails["build"]}"
    docker_repository = "projects/${var.project}/locations/${var.region}/repositories/${google_artifact_registry_repository.functions.repository_id}"

    source {
      storage_source {
        bucket     = local.source_object.bucket
        object     = local.source_object.object
        generation = local.source_object.generation
      }
    }
  }

  service_config {
    service_account_email            = local.emails[each.value.account]
    environment_variables            = local.environment
    available_memory                 = each.value.memory
    available_cpu                    = "1"
    timeout_seconds                  = each.value.timeout
    min_instance_count               = 0
    max_instance_count               = each.value.max_instances
    max_instance_request_concurrency = 1
    all_traffic_on_latest_revision   = true
    ingress_settings                 = each.value.ingress
    vpc_connector                    = var.vpc_connector
    vpc_connector_egress_settings    = var.vpc_connector == null ? null : var.vpc_egress
  }

  # No event_trigger: a subscription that Eventarc creates can have neither dead letters nor an ack deadline.

  lifecycle {
    precondition {
      condition     = each.value.entry_point == "job_state" || local.longest_pass <= var.dispatch_timeout
      error_message = "A pass may take ${local.longest_pass} s (pass_budget + create + margin in timeouts of ${local.settings_file}), but dispatch_timeout is ${var.dispatch_timeout} s. Raise dispatch_timeout or shorten pass_budget."
    }
  }

  # A build or a pass without its roles fails, so they are granted first, and get time to work.
  depends_on = [terraform_data.roles_work, google_logging_metric.this]
}

# New roles usually work after a minute. Terraform's provider of a resource that waits is one more to install, so a command does it.
resource "terraform_data" "roles_work" {
  count = var.wait_for_roles > 0 ? 1 : 0

  # A new account, in the first apply, needs roles of its own.
  triggers_replace = [google_service_account.this["build"].unique_id]
  input            = "sleep ${var.wait_for_roles}"

  provisioner "local-exec" {
    command = self.input
  }

  depends_on = [
    google_project_service.this,
    google_project_iam_member.jobs,
    google_secret_manager_secret_iam_member.dispatchers_read_key,
    google_secret_manager_secret_iam_member.jobs_read_secrets,
    google_storage_bucket_iam_member.dispatchers_keep_record,
    google_pubsub_topic_iam_member.job_state_publishes_ticks,
    google_project_iam_member.build_writes_logs,
    google_project_iam_member.build_reads_platform_sources,
    google_storage_bucket_iam_member.build_reads_source,
    google_artifact_registry_repository_iam_member.build_writes_images,
  ]
}
