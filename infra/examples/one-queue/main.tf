# The smallest deployment: one queue and one region, with everything created. Copy this folder, set your project, entity and queue,
# then run: terraform init && terraform apply

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }

  # The state holds no secret. Keep it where your team can find it:
  # backend "gcs" {
  #   bucket = "my-terraform-state"
  #   prefix = "vertex-launch"
  # }
}

provider "google" {
  project = "my-project"
  region  = "us-central1"
}

module "vertex_launch" {
  source = "../.." # the folder infra of the checkout

  project       = "my-project"
  region        = "us-central1"
  launch_config = "${path.module}/launch-config.yaml"
  invokers      = ["user:ada@example.com"]
}

output "add_key_command" {
  description = "Run it once, and again for each new key."
  value       = module.vertex_launch.add_key_command
}

output "call_command" {
  description = "Command that previews a pass."
  value       = module.vertex_launch.call_command
}

output "service_accounts" {
  description = "Set service_account in a queue's config to the account jobs."
  value       = module.vertex_launch.service_accounts
}
