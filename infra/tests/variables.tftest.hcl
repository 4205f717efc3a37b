# Values that cannot be used are refused before anything is created.

mock_provider "google" {}
mock_provider "archive" {}

variables {
  launch_config = "examples/one-queue/launch-config.yaml"
  project       = "my-project"
  region        = "us-central1"
}

run "a_name_too_long_for_accounts" {
  command = plan
  variables {
    name = "eighteen-letters-x"
  }
  expect_failures = [var.name]
}

run "seventeen_letters_are_fine" {
  command = plan
  variables {
    name = "seventeen-letters"
  }
  assert {
    condition     = alltrue([for account in google_service_account.this : length(account.account_id) <= 30])
    error_message = "The id of a service account has at most 30 characters."
  }
}

# One run for several variables: each of them must be refused.
run "several_at_once" {
  command = plan
  variables {
    project                       = "My Project"
    region                        = "us-central1-a"
    job_regions                   = ["us"]
    schedule                      = "every minute"
    wandb_base_url                = "http://wandb.example.com"
    labels                        = { Team = "ml" }
    dispatch_timeout              = 74
    dispatch_memory               = "256Mi"
    job_state_timeout             = 600
    max_delivery_attempts         = 5
    message_retention_seconds     = 60
    dead_letter_retention_seconds = 60
    wandb_secret                  = "projects/my-project/secrets/wandb/versions/3"
    record_bucket                 = "gs://state"
    images_repository             = "us-docker.pkg.dev/my-project/images"
    job_service_accounts          = ["serviceAccount:train@my-project.iam.gserviceaccount.com"]
    vertex_agents                 = ["allUsers"]
    notification_channels         = ["ada@example.com"]
    vpc_egress                    = "NONE"
    wait_for_roles                = 601
    wait_for_metrics              = -1
    role_suffix                   = "-2"
    dispatch_now_ingress          = "all"
    launch_config                 = "no-such-file.yaml"
    vertex_launch_config          = "no-such-file.yaml"
  }
  expect_failures = [
    var.project, var.region, var.job_regions, var.schedule, var.wandb_base_url, var.labels, var.dispatch_timeout, var.dispatch_memory, var.job_state_timeout,
    var.max_delivery_attempts, var.message_retention_seconds, var.dead_letter_retention_seconds, var.wandb_secret, var.record_bucket,
    var.images_repository, var.job_service_accounts, var.vertex_agents, var.notification_channels, var.vpc_egress,
    var.wait_for_roles, var.wait_for_metrics, var.role_suffix, var.dispatch_now_ingress,
    var.launch_config, var.vertex_launch_config,
  ]
}

run "a_record_in_a_staging_bucket" {
  command = plan
  variables {
    record_bucket   = "team-staging"
    staging_buckets = { us-central1 = "team-staging" }
  }
  expect_failures = [var.staging_buckets]
}

run "timeouts_that_pubsub_cannot_wait_for" {
  command = plan
  variables {
    dispatch_timeout = 600
  }
  expect_failures = [var.dispatch_timeout]
}

run "a_connector_in_another_region" {
  command = plan
  variables {
    vpc_connector = "projects/my-project/locations/us-east4/connectors/main"
  }
  expect_failures = [var.vpc_connector]
}

run "a_bucket_for_a_region_without_jobs" {
  command = plan
  variables {
    staging_buckets = { us-east4 = "team-staging" }
  }
  expect_failures = [var.staging_buckets]
}

run "a_bucket_with_gs" {
  command = plan
  variables {
    staging_buckets = { us-central1 = "gs://team-staging" }
  }
  expect_failures = [var.staging_buckets]
}

run "a_region_twice" {
  command = plan
  variables {
    job_regions = ["us-central1", "us-central1"]
  }
  expect_failures = [var.job_regions]
}

run "a_config_that_would_have_no_effect" {
  command = plan
  variables {
    source_object = { bucket = "releases", object = "vertex-launch.zip" }
    launch_config = "../launch-config.yaml"
  }
  expect_failures = [var.source_object]
}
