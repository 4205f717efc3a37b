# Ticks and log entries: pushed, tried again, kept when they cannot be delivered.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}
mock_provider "archive" {}

variables {
  launch_config = "examples/one-queue/launch-config.yaml"
  project       = "my-project"
  region        = "us-central1"

  # No commands in an apply to the mock.
  create_pubsub_agent = false
  wait_for_roles      = 0
  wait_for_metrics    = 0
}

# Applied to the mock, for the functions' addresses are not known before.
run "pushes" {
  assert {
    condition = alltrue([
      for key, function in { ticks = "dispatch", job-logs = "job-state" } :
      google_pubsub_subscription.push[key].push_config[0].push_endpoint == google_cloudfunctions2_function.this[function].service_config[0].uri &&
      google_pubsub_subscription.push[key].push_config[0].oidc_token[0].audience == google_cloudfunctions2_function.this[function].service_config[0].uri &&
      google_pubsub_subscription.push[key].push_config[0].oidc_token[0].service_account_email == "vertex-launch-push@my-project.iam.gserviceaccount.com"
    ])
    error_message = "Each subscription pushes to its function, as the push account, with the function's address as audience."
  }
  assert {
    condition = alltrue([
      for key, function in { ticks = "dispatch", job-logs = "job-state" } :
      google_pubsub_subscription.push[key].ack_deadline_seconds >= google_cloudfunctions2_function.this[function].service_config[0].timeout_seconds
    ])
    error_message = "A message must not be delivered again while its function may still be at work."
  }
  assert {
    condition     = { for key, subscription in google_pubsub_subscription.push : key => subscription.ack_deadline_seconds } == { ticks = 130, job-logs = 70 }
    error_message = "The ack deadlines are ten seconds longer than the functions' timeouts."
  }
  assert {
    condition = alltrue([
      for subscription in google_pubsub_subscription.push :
      subscription.retry_policy[0].minimum_backoff == "10s" && subscription.retry_policy[0].maximum_backoff == "60s" && subscription.message_retention_duration == "86400s" && subscription.expiration_policy[0].ttl == ""
    ])
    error_message = "Messages are tried again after 10 to 60 seconds, for a day, and the subscriptions never expire."
  }
  assert {
    condition = alltrue([
      for key, subscription in google_pubsub_subscription.push :
      subscription.dead_letter_policy[0].dead_letter_topic == "projects/my-project/topics/vertex-launch-${key}-dead" && subscription.dead_letter_policy[0].max_delivery_attempts == 20
    ])
    error_message = "After 20 attempts a message becomes a dead letter of its own kind."
  }
  assert {
    condition = alltrue([
      for key in ["ticks", "job-logs"] :
      google_pubsub_subscription.dead_letters[key].topic == "projects/my-project/topics/vertex-launch-${key}-dead" &&
      google_pubsub_subscription.dead_letters[key].message_retention_duration == "604800s" &&
      google_pubsub_subscription.dead_letters[key].expiration_policy[0].ttl == "" &&
      length(google_pubsub_subscription.dead_letters[key].push_config) == 0
    ])
    error_message = "Dead letters are kept for a week in a subscription to pull from that never expires."
  }
  assert {
    condition = alltrue([
      for key in ["ticks", "job-logs"] :
      google_pubsub_topic_iam_member.agent_publishes_dead_letters[key].topic == "vertex-launch-${key}-dead" &&
      google_pubsub_topic_iam_member.agent_publishes_dead_letters[key].role == "roles/pubsub.publisher" &&
      google_pubsub_topic_iam_member.agent_publishes_dead_letters[key].member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com" &&
      google_pubsub_subscription_iam_member.agent_takes_dead_letters[key].subscription == "vertex-launch-${key}" &&
      google_pubsub_subscription_iam_member.agent_takes_dead_letters[key].role == "roles/pubsub.subscriber" &&
      google_pubsub_subscription_iam_member.agent_takes_dead_letters[key].member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    ])
    error_message = "Pub/Sub's own account needs both rights, or no dead letter ever arrives."
  }
  assert {
    condition     = google_pubsub_topic_iam_member.sink_publishes_job_logs.topic == "vertex-launch-job-logs" && google_pubsub_topic_iam_member.sink_publishes_job_logs.member == google_logging_project_sink.job_ends.writer_identity
    error_message = "The sink's writer may publish log entries."
  }
}

run "the_tick_and_the_sink" {
  command = plan

  assert {
    condition     = google_cloud_scheduler_job.tick.schedule == "* * * * *" && google_cloud_scheduler_job.tick.pubsub_target[0].topic_name == "projects/my-project/topics/vertex-launch-ticks" && base64decode(google_cloud_scheduler_job.tick.pubsub_target[0].data) == "{}"
    error_message = "A tick is published every minute."
  }
  assert {
    condition     = google_logging_project_sink.job_ends.unique_writer_identity && google_logging_project_sink.job_ends.destination == "pubsub.googleapis.com/projects/my-project/topics/vertex-launch-job-logs"
    error_message = "The sink writes to the topic of log entries under an identity of its own."
  }
  assert {
    condition     = !strcontains(google_logging_project_sink.job_ends.filter, "running")
    error_message = "Only a job's end is worth a call."
  }
}

run "slower_passes" {
  command = plan
  variables {
    dispatch_timeout  = 300
    job_state_timeout = 90
  }
  assert {
    condition     = { for key, subscription in google_pubsub_subscription.push : key => subscription.ack_deadline_seconds } == { ticks = 310, job-logs = 100 }
    error_message = "The ack deadlines follow the functions' timeouts."
  }
}
