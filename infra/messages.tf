# Ticks request a pass, log entries report that a job has ended. Both are pushed to a function and retried. Messages that never
# succeed go to a dead-letter topic, where they are kept for someone to look at.

locals {
  pushes = {
    ticks    = { function = "dispatch", timeout = var.dispatch_timeout }
    job-logs = { function = "job-state", timeout = var.job_state_timeout }
  }

  # Full names. Built from the resources' own arguments, here and below, so that plans show them and Terraform knows the order.
  topics             = { for key, topic in google_pubsub_topic.this : key => "projects/${topic.project}/topics/${topic.name}" }
  dead_letter_topics = { for key, topic in google_pubsub_topic.dead_letters : key => "projects/${topic.project}/topics/${topic.name}" }

  pubsub_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}

resource "google_pubsub_topic" "this" {
  for_each = local.pushes

  project = var.project
  name    = "${var.name}-${each.key}"
  labels  = var.labels

  depends_on = [google_project_service.this]
}

resource "google_pubsub_topic" "dead_letters" {
  for_each = local.pushes

  project = var.project
  name    = "${var.name}-${each.key}-dead"
  labels  = var.labels

  depends_on = [google_project_service.this]
}

resource "google_pubsub_subscription" "push" {
  for_each = local.pushes

  project = var.project
  name    = "${var.name}-${each.key}"
  topic   = local.topics[each.key]
  labels  = var.labels

  # Longer than the function's timeout, because a message would otherwise be delivered again while it is processed.
  ack_deadline_seconds       = each.value.timeout + 10
  message_retention_duration = "${var.message_retention_seconds}s"

  push_config {
    push_endpoint = google_cloudfunctions2_function.this[each.value.function].service_config[0].uri

    oidc_token {
      service_account_email = local.emails["push"]
      audience              = google_cloudfunctions2_function.this[each.value.function].service_config[0].uri
    }
  }

  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "60s"
  }

  dead_letter_policy {
    dead_letter_topic     = local.dead_letter_topics[each.key]
    max_delivery_attempts = var.max_delivery_attempts
  }

  expiration_policy {
    ttl = "" # never, even if nothing happens for long
  }

  # A dead letter without a subscription is lost, and a push without its role is refused.
  depends_on = [
    google_pubsub_subscription.dead_letters,
    google_pubsub_topic_iam_member.agent_publishes_dead_letters,
    google_service_account_iam_member.pubsub_makes_tokens,
    google_cloud_run_v2_service_iam_member.push,
  ]
}

resource "google_pubsub_subscription" "dead_letters" {
  for_each = local.pushes

  project = var.project
  name    = "${var.name}-${each.key}-dead"
  topic   = local.dead_letter_topics[each.key]
  labels  = var.labels

  ack_deadline_seconds       = 60
  message_retention_duration = "${var.dead_letter_retention_seconds}s"

  expiration_policy {
    ttl = ""
  }
}

# Pub/Sub's own account moves dead letters: it publishes them here and acknowledges them there.

resource "google_pubsub_topic_iam_member" "agent_publishes_dead_letters" {
  for_each = google_pubsub_topic.dead_letters

  project = each.value.project
  topic   = each.value.name
  role    = "roles/pubsub.publisher"
  member  = local.pubsub_agent

  depends_on = [terraform_data.pubsub_agent]
}

resource "google_pubsub_subscription_iam_member" "agent_takes_dead_letters" {
  for_each = google_pubsub_subscription.push

  project      = each.value.project
  subscription = each.value.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent

  depends_on = [terraform_data.pubsub_agent]
}

resource "google_cloud_scheduler_job" "tick" {
  project     = var.project
  region      = var.region
  name        = "${var.name}-tick"
  description = "Requests a pass."
  schedule    = var.schedule
  time_zone   = "Etc/UTC"

  pubsub_target {
    topic_name = local.topics["ticks"]
    data       = base64encode("{}")
  }

  depends_on = [google_project_service.this]
}

# Log entries about the end of every job in the project, because they have no labels. job-state finds out which are ours.
resource "google_logging_project_sink" "job_ends" {
  project     = var.project
  name        = "${var.name}-job-ends"
  description = "Reports to ${var.name}-job-state that a job has ended."
  destination = "pubsub.googleapis.com/${local.topics["job-logs"]}"
  filter      = trimspace(file("${path.module}/job-ends.filter"))

  unique_writer_identity = true

  depends_on = [google_project_service.this]
}

resource "google_pubsub_topic_iam_member" "sink_publishes_job_logs" {
  project = var.project
  topic   = google_pubsub_topic.this["job-logs"].name
  role    = "roles/pubsub.publisher"
  member  = google_logging_project_sink.job_ends.writer_identity
}
