# Stored data: the W&B key, the record, jobs' output, jobs' images, and the functions' source and images.

locals {
  secret = (
    var.wandb_secret != null
    ? var.wandb_secret
    : "projects/${one(google_secret_manager_secret.wandb_api_key[*].project)}/secrets/${one(google_secret_manager_secret.wandb_api_key[*].secret_id)}"
  )
  secret_parts = split("/", local.secret) # projects, P, secrets, S

  record_bucket = var.record_bucket != null ? var.record_bucket : one(google_storage_bucket.record[*].name)

  staging_buckets = merge({ for region, bucket in google_storage_bucket.staging : region => bucket.name }, var.staging_buckets)

  images_repository = (
    var.images_repository != null
    ? var.images_repository
    : "projects/${var.project}/locations/${var.region}/repositories/${one(google_artifact_registry_repository.images[*].repository_id)}"
  )
  images_repository_parts = split("/", local.images_repository) # projects, P, locations, L, repositories, R
}

# Without a version: add the key with `gcloud secrets versions add`, never with Terraform, whose state would contain it.
resource "google_secret_manager_secret" "wandb_api_key" {
  count = var.wandb_secret == null ? 1 : 0

  project   = var.project
  secret_id = "${var.name}-wandb-api-key"
  labels    = var.labels

  replication {
    auto {}
  }

  depends_on = [google_project_service.this]
}

# Every pass overwrites two small objects. Kept versions would add up to thousands a day, and a lifecycle rule could delete the
# record during a pass.
resource "google_storage_bucket" "record" {
  count = var.record_bucket == null ? 1 : 0

  project                     = var.project
  name                        = "${var.project}-${var.name}-state"
  location                    = var.region
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false # it holds the list of running jobs

  versioning {
    enabled = false
  }
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  depends_on = [google_project_service.this]
}

# Jobs' output. One bucket per region, because Vertex AI requires it in the job's region.
resource "google_storage_bucket" "staging" {
  for_each = toset([for region in local.job_regions : region if !contains(keys(var.staging_buckets), region)])

  project                     = var.project
  name                        = "${var.project}-${var.name}-staging-${each.key}"
  location                    = each.key
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false # results of training

  lifecycle {
    precondition {
      condition     = "${var.project}-${var.name}-staging-${each.key}" != var.record_bucket
      error_message = "record_bucket is the staging bucket of ${each.key}. Jobs write there, so they could change the record. Use another bucket."
    }
    precondition {
      condition     = length("${var.project}-${var.name}-staging-${each.key}") <= 63
      error_message = "${var.project}-${var.name}-staging-${each.key} is longer than 63 characters, the limit for a bucket's name. Choose a shorter name, or name an existing bucket for ${each.key} in staging_buckets."
    }
  }

  depends_on = [google_project_service.this]
}

# Jobs' images.
resource "google_artifact_registry_repository" "images" {
  count = var.images_repository == null ? 1 : 0

  project       = var.project
  location      = var.region
  repository_id = "${var.name}-images"
  description   = "Images that jobs of ${var.name} run."
  format        = "DOCKER"
  labels        = var.labels

  depends_on = [google_project_service.this]
}

# The functions' images.
resource "google_artifact_registry_repository" "functions" {
  project       = var.project
  location      = var.region
  repository_id = "${var.name}-functions"
  description   = "Images of the functions of ${var.name}."
  format        = "DOCKER"
  labels        = var.labels

  # Each deployment of a function leaves an image. The last ones are enough to go back to.
  cleanup_policy_dry_run = false
  cleanup_policies {
    id     = "keep-last"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }
  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      older_than = "2592000s"
    }
  }

  depends_on = [google_project_service.this]
}

# The functions' source.
resource "google_storage_bucket" "source" {
  count = var.source_object == null ? 1 : 0

  project                     = var.project
  name                        = "${var.project}-${var.name}-source"
  location                    = var.region
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # zips of a checkout, which can be created again

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  depends_on = [google_project_service.this]
}
