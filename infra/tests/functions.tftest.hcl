# The functions: accounts, limits, environment, code.

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
    condition = { for function in google_cloudfunctions2_function.this : function.name => [function.build_config[0].entry_point, function.build_config[0].runtime, function.service_config[0].service_account_email] } == {
      vertex-launch-dispatch     = ["dispatch", "python313", "vertex-launch-dispatch@my-project.iam.gserviceaccount.com"]
      vertex-launch-dispatch-now = ["dispatch_now", "python313", "vertex-launch-now@my-project.iam.gserviceaccount.com"]
      vertex-launch-job-state    = ["job_state", "python313", "vertex-launch-job-state@my-project.iam.gserviceaccount.com"]
    }
    error_message = "Each function has its entry point and an account of its own."
  }
  assert {
    condition = { for key, function in google_cloudfunctions2_function.this : key => [function.service_config[0].max_instance_count, function.service_config[0].max_instance_request_concurrency, function.service_config[0].min_instance_count, function.service_config[0].timeout_seconds] } == {
      dispatch     = [1, 1, 0, 120]
      dispatch-now = [1, 1, 0, 120]
      job-state    = [3, 1, 0, 60]
    }
    error_message = "One instance with one request at a time for passes, and nothing runs in between."
  }
  assert {
    condition     = { for key, function in google_cloudfunctions2_function.this : key => function.service_config[0].available_memory } == { dispatch = "1Gi", dispatch-now = "1Gi", job-state = "512Mi" }
    error_message = "The functions have the memory that was measured to hold."
  }
  assert {
    condition     = { for key, function in google_cloudfunctions2_function.this : key => function.service_config[0].ingress_settings } == { dispatch = "ALLOW_INTERNAL_ONLY", dispatch-now = "ALLOW_ALL", job-state = "ALLOW_INTERNAL_ONLY" }
    error_message = "Only dispatch-now can be called from outside."
  }
  assert {
    condition = alltrue([
      for function in google_cloudfunctions2_function.this :
      function.build_config[0].service_account == "projects/my-project/serviceAccounts/vertex-launch-build@my-project.iam.gserviceaccount.com" &&
      function.build_config[0].docker_repository == "projects/my-project/locations/us-central1/repositories/vertex-launch-functions" &&
      length(function.event_trigger) == 0 && length(function.service_config[0].secret_environment_variables) == 0
    ])
    error_message = "Functions are built by the build account into their repository, have no Eventarc trigger and no secret in their environment."
  }
  assert {
    condition = alltrue([
      for function in google_cloudfunctions2_function.this : function.service_config[0].environment_variables == tomap({
        GOOGLE_CLOUD_PROJECT     = "my-project"
        GOOGLE_CLOUD_REGION      = "us-central1"
        STAGING_BUCKETS          = "gs://my-project-vertex-launch-staging-us-central1"
        JOBS_ACCOUNT             = "vertex-launch-jobs@my-project.iam.gserviceaccount.com"
        STATE_BUCKET             = "gs://my-project-vertex-launch-state"
        DISPATCH_TOPIC           = "projects/my-project/topics/vertex-launch-ticks"
        WANDB_API_KEY_SECRET     = "projects/my-project/secrets/vertex-launch-wandb-api-key/versions/latest"
        VERTEX_LAUNCH_DEPLOYMENT = "vertex-launch"
      })
    ])
    error_message = "The environment of the functions is not what it should be."
  }
}

run "regions_a_server_and_a_network" {
  command = plan
  variables {
    name            = "ml-team"
    job_regions     = ["us-east4", "us-central1"]
    staging_buckets = { us-central1 = "my-own" }
    wandb_base_url  = "https://wandb.example.com"
    vpc_connector   = "projects/my-project/locations/us-central1/connectors/main"
  }
  assert {
    condition = (
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["GOOGLE_CLOUD_REGION"] == "us-east4,us-central1" &&
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["STAGING_BUCKETS"] == "gs://my-project-ml-team-staging-us-east4,gs://my-own" &&
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["WANDB_BASE_URL"] == "https://wandb.example.com" &&
      google_cloudfunctions2_function.this["dispatch"].service_config[0].environment_variables["VERTEX_LAUNCH_DEPLOYMENT"] == "ml-team"
    )
    error_message = "Regions keep their order, each with its bucket."
  }
  assert {
    condition     = google_cloudfunctions2_function.this["dispatch"].location == "us-central1"
    error_message = "The job regions do not change the region of the functions."
  }
  assert {
    condition = alltrue([
      for function in google_cloudfunctions2_function.this :
      function.service_config[0].vpc_connector == "projects/my-project/locations/us-central1/connectors/main" && function.service_config[0].vpc_connector_egress_settings == "PRIVATE_RANGES_ONLY"
    ])
    error_message = "The functions reach private addresses through the connector."
  }
}

run "only_images" {
  command = plan
  variables {
    dispatch_memory = "512Mi"
  }
  assert {
    condition     = alltrue([for function in google_cloudfunctions2_function.this : function.service_config[0].available_memory == "512Mi"])
    error_message = "The functions that run passes have the memory that was asked for."
  }
}

run "no_public_ingress" {
  command = plan
  variables {
    dispatch_now_ingress = "ALLOW_INTERNAL_AND_GCLB"
  }
  assert {
    condition     = google_cloudfunctions2_function.this["dispatch-now"].service_config[0].ingress_settings == "ALLOW_INTERNAL_AND_GCLB"
    error_message = "An organization may forbid public ingress."
  }
}

run "code_from_a_bucket" {
  command = plan
  variables {
    source_object = { bucket = "releases", object = "vertex-launch-1.0.zip" }
    launch_config = null
  }
  assert {
    condition     = length(google_storage_bucket.source) == 0 && length(google_storage_bucket_object.source) == 0 && length(data.archive_file.source) == 0
    error_message = "Nothing is zipped or uploaded if the code is in a bucket already."
  }
  assert {
    condition     = alltrue([for function in google_cloudfunctions2_function.this : function.build_config[0].source[0].storage_source[0].bucket == "releases" && function.build_config[0].source[0].storage_source[0].object == "vertex-launch-1.0.zip"])
    error_message = "The functions are built from the named object."
  }
  assert {
    condition     = google_storage_bucket_iam_member.build_reads_source.bucket == "releases"
    error_message = "The build account may read the bucket of the code."
  }
}

run "a_configuration_with_placeholders" {
  command = plan
  variables {
    launch_config = "tests/placeholders.yaml"
  }
  expect_failures = [google_storage_bucket_object.source]
}

run "passes_longer_than_the_function_may_take" {
  command = plan
  variables {
    vertex_launch_config = "tests/long-pass.yaml"
  }
  expect_failures = [google_cloudfunctions2_function.this["dispatch"], google_cloudfunctions2_function.this["dispatch-now"]]
}

run "long_passes_with_a_longer_timeout" {
  command = plan
  variables {
    vertex_launch_config = "tests/long-pass.yaml"
    dispatch_timeout     = 240
  }
  assert {
    condition     = google_cloudfunctions2_function.this["dispatch"].service_config[0].timeout_seconds == 240
    error_message = "The dispatchers have the timeout that was set."
  }
}
