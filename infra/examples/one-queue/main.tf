# One queue, one region, everything made new: the smallest deployment. Copy this folder, write your project, your entity and
# your queue, then: terraform init && terraform apply

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }

  # The state holds no secret. Keep it where your team finds it:
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
  source = "../.." # the folder infra of the checkout, seen from here

  project       = "my-project"
  region        = "us-central1"
  launch_config = "${path.module}/launch-config.yaml"
  invokers      = ["user:ada@example.com"]
}

output "add_key_command" {
  description = "Run it once, and again for a new key."
  value       = module.vertex_launch.add_key_command
}

output "call_command" {
  description = "Shows what a pass would find."
  value       = module.vertex_launch.call_command
}

output "service_accounts" {
  description = "The account jobs is what a queue's config names as service_account."
  value       = module.vertex_launch.service_accounts
}
