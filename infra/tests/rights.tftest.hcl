# What each account may do.

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
    condition = { for role in google_project_iam_custom_role.this : role.role_id => sort(role.permissions) } == {
      vertex_launch_dispatch  = tolist(["aiplatform.customJobs.cancel", "aiplatform.customJobs.create", "aiplatform.customJobs.get", "aiplatform.customJobs.list"])
      vertex_launch_job_state = tolist(["aiplatform.customJobs.get"])
      vertex_launch_record    = tolist(["storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list"])
      vertex_launch_act_as    = tolist(["iam.serviceAccounts.actAs"])
    }
    error_message = "A custom role has other permissions than those that are used."
  }
  assert {
    condition = { for key, binding in google_project_iam_member.jobs : binding.member => binding.role } == {
      "serviceAccount:vertex-launch-dispatch@my-project.iam.gserviceaccount.com"  = "projects/my-project/roles/vertex_launch_dispatch"
      "serviceAccount:vertex-launch-now@my-project.iam.gserviceaccount.com"       = "projects/my-project/roles/vertex_launch_dispatch"
      "serviceAccount:vertex-launch-job-state@my-project.iam.gserviceaccount.com" = "projects/my-project/roles/vertex_launch_job_state"
    }
    error_message = "Only the two dispatchers create jobs; job-state gets them and nothing more."
  }
  assert {
    condition = toset([for binding in google_service_account_iam_member.act_as_job_accounts : "${binding.member} ${binding.service_account_id}"]) == toset([
      "serviceAccount:vertex-launch-dispatch@my-project.iam.gserviceaccount.com projects/my-project/serviceAccounts/vertex-launch-jobs@my-project.iam.gserviceaccount.com",
      "serviceAccount:vertex-launch-now@my-project.iam.gserviceaccount.com projects/my-project/serviceAccounts/vertex-launch-jobs@my-project.iam.gserviceaccount.com",
    ])
    error_message = "Only the dispatchers may act as the account of jobs, and as no other account."
  }
  assert {
    condition     = toset([for binding in google_secret_manager_secret_iam_member.dispatchers_read_key : "${binding.secret_id} ${binding.member}"]) == toset([for who in ["dispatch", "now"] : "vertex-launch-wandb-api-key serviceAccount:vertex-launch-${who}@my-project.iam.gserviceaccount.com"])
    error_message = "Only the two dispatchers read the key."
  }
  assert {
    condition     = length(google_secret_manager_secret_iam_member.jobs_read_secrets) == 0
    error_message = "By default jobs read no secret."
  }
  assert {
    condition     = length(google_project_iam_member.job_logs) == 0 && length(google_project_iam_member.deploy_deploys) == 0 && length(google_project_iam_member.cloud_build_reads_checkout) == 0 && length(google_service_account_iam_member.deploy_acts_as) == 0
    error_message = "Reading logs and deploying are granted only on request."
  }
  assert {
    condition     = google_project_iam_member.build_reads_platform_sources.condition[0].expression == "resource.name == \"projects/_/buckets/gcf-v2-sources-123456789012-us-central1\" || resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-123456789012-us-central1/\")"
    error_message = "The build account reads and lists one bucket of Cloud Functions, not the project's."
  }
  assert {
    condition     = "${google_service_account_iam_member.pubsub_makes_tokens.role} ${google_service_account_iam_member.pubsub_makes_tokens.service_account_id} ${google_service_account_iam_member.pubsub_makes_tokens.member}" == "roles/iam.serviceAccountTokenCreator projects/my-project/serviceAccounts/vertex-launch-push@my-project.iam.gserviceaccount.com serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub's own account makes tokens of the push account, and of no other."
  }
  assert {
    condition     = terraform_data.pubsub_agent[0].input == "gcloud beta services identity create --service=pubsub.googleapis.com --project=my-project" && terraform_data.roles_work[0].input == "sleep 90" && terraform_data.metrics_appear[0].input == "sleep 600"
    error_message = "Pub/Sub's own account is created, and new roles and metrics get time to work."
  }
}

run "existing_accounts_of_jobs" {
  command = plan
  variables {
    job_service_accounts = ["train@other-project.iam.gserviceaccount.com", "123456789012-compute@developer.gserviceaccount.com"]
    job_regions          = ["us-central1", "us-east4"]
  }

  assert {
    condition     = !contains(keys(google_service_account.this), "jobs")
    error_message = "The account of jobs is not created if others are listed."
  }
  assert {
    condition = toset([for binding in google_service_account_iam_member.act_as_job_accounts : "${binding.service_account_id} ${binding.role}"]) == toset([
      "projects/other-project/serviceAccounts/train@other-project.iam.gserviceaccount.com roles/iam.serviceAccountUser",
      "projects/my-project/serviceAccounts/123456789012-compute@developer.gserviceaccount.com projects/my-project/roles/vertex_launch_act_as",
    ]) && length(google_service_account_iam_member.act_as_job_accounts) == 4
    error_message = "Both dispatchers may act as each listed account, and as no other."
  }
  assert {
    condition     = length(google_storage_bucket_iam_member.jobs_write_output) == 4
    error_message = "Each listed account writes to the staging bucket of each region."
  }
}

run "listed_accounts_beside_the_one_made" {
  command = plan
  variables {
    create_job_service_account = true
    job_service_accounts       = ["train@my-project.iam.gserviceaccount.com"]
  }
  assert {
    condition     = length(google_service_account_iam_member.act_as_job_accounts) == 4
    error_message = "Both dispatchers may act as the listed account and as the one made here."
  }
}

run "accounts_of_jobs_are_not_wanted" {
  command = plan
  variables {
    create_job_service_account = false
  }
  assert {
    condition     = !contains(keys(google_service_account.this), "jobs") && length(google_service_account_iam_member.act_as_job_accounts) == 0
    error_message = "No account may act as another if jobs run as Vertex AI's own account."
  }
}

run "secrets_that_jobs_read" {
  command = plan
  variables {
    vertex_launch_config = "tests/secrets.yaml"
    job_service_accounts = ["train@other-project.iam.gserviceaccount.com", "train@my-project.iam.gserviceaccount.com"]
  }
  assert {
    condition = toset([for binding in google_secret_manager_secret_iam_member.jobs_read_secrets : "${binding.member} ${binding.project}/${binding.secret_id} ${binding.role}"]) == toset([
      for pair in setproduct(["other-project", "my-project"], ["my-project/vertex-launch-wandb-api-key", "my-project/github-token", "other-project/gitlab-token"]) :
      "serviceAccount:train@${pair[0]}.iam.gserviceaccount.com ${pair[1]} roles/secretmanager.secretAccessor"
    ]) && length(google_secret_manager_secret_iam_member.jobs_read_secrets) == 6
    error_message = "Each account of jobs reads the key and each token once, where the secret is, and nothing else."
  }
  assert {
    condition     = length(google_secret_manager_secret_iam_member.dispatchers_read_key) == 2
    error_message = "The functions read the key and no token."
  }
}

run "a_token_but_not_the_key" {
  command = plan
  variables {
    vertex_launch_config = "tests/token.yaml"
  }
  assert {
    condition     = [for binding in google_secret_manager_secret_iam_member.jobs_read_secrets : "${binding.secret_id} ${binding.member}"] == ["github-token serviceAccount:vertex-launch-jobs@my-project.iam.gserviceaccount.com"]
    error_message = "If the key is in the jobs' specs, no job may read it."
  }
}

run "the_key_of_another_project" {
  command = plan
  variables {
    vertex_launch_config = "tests/secrets.yaml"
    wandb_secret         = "projects/secrets-project/secrets/wandb"
  }
  assert {
    condition     = contains([for binding in google_secret_manager_secret_iam_member.jobs_read_secrets : "${binding.project}/${binding.secret_id}"], "secrets-project/wandb")
    error_message = "Jobs read the key in the secret that the functions read it from."
  }
}

run "log_lines" {
  command = plan
  variables {
    vertex_launch_config = "examples/many/research/vertex-launch.yaml"
  }
  assert {
    condition     = toset(google_project_iam_custom_role.this["job_logs"].permissions) == toset(["logging.logEntries.list"]) && toset(keys(google_project_iam_member.job_logs)) == toset(["dispatch", "now"])
    error_message = "With log_lines the dispatchers may list log entries, and nothing more."
  }
}

run "log_lines_but_no_right" {
  command = plan
  variables {
    vertex_launch_config = "examples/many/research/vertex-launch.yaml"
    read_job_logs        = false
  }
  assert {
    condition     = !contains(keys(google_project_iam_custom_role.this), "job_logs")
    error_message = "read_job_logs wins over the file."
  }
}

run "deploying_with_cloud_build" {
  command = plan
  variables {
    deploy_with_cloud_build = true
  }
  assert {
    condition     = google_project_iam_member.deploy_deploys[0].role == "roles/cloudfunctions.developer" && google_project_iam_member.deploy_deploys[0].member == "serviceAccount:vertex-launch-deploy@my-project.iam.gserviceaccount.com"
    error_message = "Only the deploying account may deploy functions."
  }
  assert {
    condition     = toset(keys(google_service_account_iam_member.deploy_acts_as)) == toset(["dispatch", "now", "job-state", "build"])
    error_message = "The deploying account acts as those of the functions and of builds, neither as the account of pushes nor of jobs."
  }
}

run "without_gcloud_and_without_waiting" {
  command = plan
  variables {
    create_pubsub_agent = false
    wait_for_roles      = 0
    wait_for_metrics    = 0
  }
  assert {
    condition     = length(terraform_data.pubsub_agent) + length(terraform_data.roles_work) + length(terraform_data.metrics_appear) == 0
    error_message = "Terraform runs no command."
  }
}

run "after_a_destroy" {
  command = plan
  variables {
    role_suffix = "_2"
  }
  assert {
    condition     = alltrue([for role in google_project_iam_custom_role.this : endswith(role.role_id, "_2")]) && alltrue([for binding in google_project_iam_member.jobs : endswith(binding.role, "_2")])
    error_message = "Roles with ids that are not blocked are created and granted."
  }
}

run "agents_that_are_named" {
  command = plan
  variables {
    vertex_agents = ["service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com"]
  }
  assert {
    condition     = [for binding in google_artifact_registry_repository_iam_member.vertex_reads_images : "${binding.repository} ${binding.role} ${binding.member}"] == ["vertex-launch-images roles/artifactregistry.reader serviceAccount:service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com"]
    error_message = "The named agent may pull the images of jobs."
  }
}
