# Stored data, and what is not created if it exists.

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
}

run "by_default" {
  command = plan

  assert {
    condition = (
      google_storage_bucket.record[0].name == "my-project-vertex-launch-state" &&
      google_storage_bucket.record[0].versioning[0].enabled == false &&
      google_storage_bucket.record[0].soft_delete_policy[0].retention_duration_seconds == 0 &&
      length(google_storage_bucket.record[0].lifecycle_rule) == 0 &&
      length(google_storage_bucket.record[0].retention_policy) == 0
    )
    error_message = "Nothing may keep old versions of the record or delete it."
  }
  assert {
    condition     = google_storage_bucket.record[0].force_destroy == false && alltrue([for bucket in google_storage_bucket.staging : bucket.force_destroy == false])
    error_message = "Destroying must not delete the record or results."
  }
  assert {
    condition = alltrue([
      for bucket in concat(google_storage_bucket.record, values(google_storage_bucket.staging), google_storage_bucket.source) :
      bucket.uniform_bucket_level_access && bucket.public_access_prevention == "enforced"
    ])
    error_message = "No bucket can be opened to the public."
  }
  assert {
    condition     = google_secret_manager_secret.wandb_api_key[0].secret_id == "vertex-launch-wandb-api-key"
    error_message = "Only the secret is created; there is no resource for a version."
  }
  assert {
    condition     = length(google_artifact_registry_repository_iam_member.vertex_reads_images) == 0
    error_message = "Vertex AI's agents may not exist yet, and have a role from Google that covers the repositories of their project."
  }
  assert {
    condition     = google_artifact_registry_repository.functions.cleanup_policy_dry_run == false && { for policy in google_artifact_registry_repository.functions.cleanup_policies : policy.id => policy.action } == { keep-last = "KEEP", delete-old = "DELETE" }
    error_message = "Old images of the functions are deleted, but for the last ones."
  }
  assert {
    condition     = startswith(google_storage_bucket_object.source[0].name, "source-")
    error_message = "The code's object is named after its content."
  }
}

run "everything_exists" {
  command = plan
  variables {
    wandb_secret         = "projects/secrets-project/secrets/wandb"
    record_bucket        = "shared-state"
    staging_buckets      = { us-central1 = "team-staging" }
    images_repository    = "projects/images-project/locations/us/repositories/ml"
    job_service_accounts = ["train@my-project.iam.gserviceaccount.com"]
    source_object        = { bucket = "releases", object = "vertex-launch.zip" }
    launch_config        = null
    enable_apis          = false
  }

  assert {
    condition = (
      length(google_secret_manager_secret.wandb_api_key) == 0 && length(google_storage_bucket.record) == 0 && length(google_storage_bucket.staging) == 0 &&
      length(google_storage_bucket.source) == 0 && length(google_artifact_registry_repository.images) == 0 && length(google_project_service.this) == 0
    )
    error_message = "Existing resources are not created."
  }
  assert {
    condition     = alltrue([for binding in google_secret_manager_secret_iam_member.dispatchers_read_key : binding.project == "secrets-project" && binding.secret_id == "wandb"])
    error_message = "The dispatchers may read the named secret."
  }
  assert {
    condition     = alltrue([for binding in google_storage_bucket_iam_member.dispatchers_keep_record : binding.bucket == "shared-state" && binding.role == "projects/my-project/roles/vertex_launch_record"])
    error_message = "The dispatchers keep the record in the named bucket."
  }
  assert {
    condition     = alltrue([for binding in google_storage_bucket_iam_member.jobs_write_output : binding.bucket == "team-staging" && binding.member == "serviceAccount:train@my-project.iam.gserviceaccount.com"])
    error_message = "Jobs write to the named bucket."
  }
  assert {
    condition     = length(google_artifact_registry_repository_iam_member.vertex_reads_images) == 2 && alltrue([for binding in google_artifact_registry_repository_iam_member.vertex_reads_images : binding.project == "images-project" && binding.location == "us" && binding.repository == "ml"])
    error_message = "Vertex AI's agents may pull from the named repository."
  }
  assert {
    condition = (
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["WANDB_API_KEY_SECRET"] == "projects/secrets-project/secrets/wandb/versions/latest" &&
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["STATE_BUCKET"] == "gs://shared-state" &&
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["STAGING_BUCKETS"] == "gs://team-staging"
    )
    error_message = "The functions use the existing resources."
  }
}

run "a_bucket_whose_name_would_be_too_long" {
  command = plan
  variables {
    project     = "a-project-with-thirty-letters1"
    job_regions = ["northamerica-northeast1"]
  }
  expect_failures = [google_storage_bucket.staging["northamerica-northeast1"]]
}

run "a_record_in_a_staging_bucket_of_the_module" {
  command = plan
  variables {
    record_bucket = "my-project-vertex-launch-staging-us-central1"
  }
  expect_failures = [google_storage_bucket.staging["us-central1"]]
}
