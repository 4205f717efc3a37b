# Who may call which function.

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
  invokers      = ["user:ada@example.com", "serviceAccount:ci@my-project.iam.gserviceaccount.com"]
}

run "pushes_and_named_callers" {
  command = plan

  assert {
    condition = { for key, binding in google_cloud_run_v2_service_iam_member.push : key => [binding.name, binding.role, binding.member] } == {
      ticks    = ["vertex-launch-dispatch", "roles/run.invoker", "serviceAccount:vertex-launch-push@my-project.iam.gserviceaccount.com"]
      job-logs = ["vertex-launch-job-state", "roles/run.invoker", "serviceAccount:vertex-launch-push@my-project.iam.gserviceaccount.com"]
    }
    error_message = "Only the push account may call dispatch and job-state."
  }
  assert {
    condition = { for key, binding in google_cloud_run_v2_service_iam_member.invokers : key => [binding.name, binding.role, binding.member] } == {
      "user:ada@example.com"                                 = ["vertex-launch-dispatch-now", "roles/run.invoker", "user:ada@example.com"]
      "serviceAccount:ci@my-project.iam.gserviceaccount.com" = ["vertex-launch-dispatch-now", "roles/run.invoker", "serviceAccount:ci@my-project.iam.gserviceaccount.com"]
    }
    error_message = "Only the named callers may call dispatch-now, and nothing else."
  }
}

run "without_invokers" {
  command = plan
  variables {
    invokers = []
  }
  assert {
    condition     = length(google_cloud_run_v2_service_iam_member.invokers) == 0
    error_message = "Without invokers, no one may call dispatch-now."
  }
}

run "all_users_are_refused" {
  command = plan
  variables {
    invokers = ["allUsers"]
  }
  expect_failures = [var.invokers]
}

run "all_authenticated_users_are_refused" {
  command = plan
  variables {
    invokers = ["user:ada@example.com", "allAuthenticatedUsers"]
  }
  expect_failures = [var.invokers]
}

run "a_bare_address_is_refused" {
  command = plan
  variables {
    invokers = ["ada@example.com"]
  }
  expect_failures = [var.invokers]
}
