# Two deployments in one project: research uses several queues, regions, existing accounts and buckets; trial is separate, so its
# jobs are counted and settled separately. W&B is self-hosted in a VPC network.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }
}

locals {
  project = "my-project"
  wandb   = "https://wandb.example.com"
}

provider "google" {
  project = local.project
  region  = "europe-west4"
}

module "research" {
  source = "../.."

  project              = local.project
  region               = "europe-west4"
  name                 = "research"
  launch_config        = "${path.module}/research/launch-config.yaml"
  vertex_launch_config = "${path.module}/research/vertex-launch.yaml"
  job_regions          = ["europe-west4", "us-central1", "us-east4"] # the first is the default

  # Existing resources. A staging bucket is created for us-east4.
  wandb_secret               = "projects/my-project/secrets/wandb-launch-key"
  staging_buckets            = { europe-west4 = "my-project-training-eu", us-central1 = "my-project-training-us" }
  images_repository          = "projects/my-project/locations/europe/repositories/training"
  job_service_accounts       = ["train-small@my-project.iam.gserviceaccount.com", "train-large@my-project.iam.gserviceaccount.com"]
  create_job_service_account = false

  wandb_base_url = local.wandb
  vpc_connector  = "projects/my-project/locations/europe-west4/connectors/internal"

  invokers              = ["group:research@example.com", "serviceAccount:ci@my-project.iam.gserviceaccount.com"]
  notification_channels = ["projects/my-project/notificationChannels/1234567890"]
  labels                = { team = "research" }
}

module "trial" {
  source = "../.."

  project       = local.project
  region        = "europe-west4"
  name          = "trial"
  launch_config = "${path.module}/trial/launch-config.yaml"

  wandb_secret   = "projects/my-project/secrets/wandb-launch-key"
  wandb_base_url = local.wandb
  vpc_connector  = "projects/my-project/locations/europe-west4/connectors/internal"

  schedule    = "*/5 * * * *" # items may wait for five minutes
  invokers    = ["group:research@example.com"]
  labels      = { team = "research", stage = "trial" }
  enable_apis = false # research does
}

output "dispatch_now_urls" {
  description = "URLs that run a pass at once, by deployment."
  value       = { research = module.research.dispatch_now_url, trial = module.trial.dispatch_now_url }
}
