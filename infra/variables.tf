# Required.

variable "project" {
  description = "ID of the project in which everything is created and jobs run."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project ID has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter. Use the ID, not the number or the name."
  }
}

variable "region" {
  description = "Region of the functions, the scheduler and the buckets, such as us-central1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like us-central1; a zone (us-central1-a) or a multi-region (us) cannot be used."
  }
}

# This deployment.

variable "name" {
  description = "Prefix of all names, and the deployment's name in jobs' labels and in W&B. Deployments in one project need different names."
  type        = string
  default     = "vertex-launch"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,15}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 17 lower-case letters, digits and hyphens, begins with a letter and does not end with a hyphen. The IDs of service accounts begin with it and are limited to 30 characters."
  }
}

variable "job_regions" {
  description = "Regions in which jobs may run; the first is the default. Empty: only var.region."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for region in var.job_regions : can(regex("^[a-z]+-[a-z]+[0-9]+$", region))])
    error_message = "Each of job_regions must look like us-central1."
  }
  validation {
    condition     = length(distinct(var.job_regions)) == length(var.job_regions)
    error_message = "Name each region once in job_regions."
  }
}

variable "invokers" {
  description = "Members who may call dispatch-now, such as user:ada@example.com, group:ml@example.com or serviceAccount:ci@my-project.iam.gserviceaccount.com."
  type        = set(string)
  default     = []

  validation {
    condition = alltrue([
      for member in var.invokers : can(regex("^(user|group|serviceAccount|principal|principalSet):.+$", member))
    ])
    error_message = "Each of invokers must be user:…, group:…, serviceAccount:…, principal:… or principalSet:…. With allUsers, allAuthenticatedUsers or domain:…, anyone or your whole company could start jobs at your cost."
  }
}

variable "schedule" {
  description = "When to run a pass besides after a job's end: cron, in UTC. A new item waits at most that long. If it is slower than every five minutes, change the alert about missing passes as well."
  type        = string
  default     = "* * * * *"

  validation {
    condition     = can(regex("^[^ ]+( [^ ]+){4}$", var.schedule))
    error_message = "The schedule must have the five fields of cron, as in */5 * * * *."
  }
}

variable "wandb_base_url" {
  description = "A self-hosted W&B server, such as https://wandb.example.com. null: the one in vertex-launch.yaml, by default https://api.forge.coreweave.com."
  type        = string
  default     = null

  validation {
    condition     = var.wandb_base_url == null || can(regex("^(https://[^/ ]+|http://(127\\.0\\.0\\.1|localhost)(:[0-9]+)?)(/[^ ]*)?$", var.wandb_base_url))
    error_message = "The server's URL must begin with https://, because the API key is sent there."
  }
}

variable "labels" {
  description = "Labels for every resource that can have them, such as {team = \"ml\"}."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels have at most 63 lower-case letters, digits, hyphens and underscores; keys begin with a letter."
  }
}

# The code.

variable "launch_config" {
  description = "Path of the launch-config.yaml to deploy. null: the one in the checkout."
  type        = string
  default     = null

  validation {
    condition     = var.launch_config == null || try(fileexists(var.launch_config), false)
    error_message = "The file launch_config does not exist. \"$${path.module}/launch-config.yaml\" is the one next to the calling module."
  }
}

variable "vertex_launch_config" {
  description = "Path of the vertex-launch.yaml to deploy. null: the one in the checkout. The module sets project, regions, buckets, secret and topic, which override the file."
  type        = string
  default     = null

  validation {
    condition     = var.vertex_launch_config == null || try(fileexists(var.vertex_launch_config), false)
    error_message = "The file vertex_launch_config does not exist. \"$${path.module}/vertex-launch.yaml\" is the one next to the calling module."
  }
}

variable "source_object" {
  description = "A zip file in a bucket to deploy instead of this checkout, including both YAML files: {bucket, object}, and generation if it is overwritten in place. Set vertex_launch_config to the vertex-launch.yaml in it."
  type = object({
    bucket     = string
    object     = string
    generation = optional(number)
  })
  default = null

  validation {
    condition     = var.source_object == null || var.launch_config == null
    error_message = "source_object contains its own launch-config.yaml, so launch_config has no effect. Remove one of them."
  }
}

# Limits. The defaults match those of vertex-launch.yaml.

variable "dispatch_timeout" {
  description = "Timeout of a pass in seconds. Pub/Sub waits ten seconds longer before it delivers a tick again."
  type        = number
  default     = 120

  validation {
    condition     = var.dispatch_timeout >= 75 && var.dispatch_timeout <= 590 && floor(var.dispatch_timeout) == var.dispatch_timeout
    error_message = "dispatch_timeout must be 75 to 590 whole seconds: a pass takes up to 75 by default, and Pub/Sub waits at most 600."
  }
}

variable "dispatch_memory" {
  description = "Memory of each function that runs passes: 512Mi, 1Gi, 2Gi or 4Gi. 1Gi is enough for some hundred jobs from W&B job artifacts, 512Mi if items bring images only."
  type        = string
  default     = "1Gi"
  nullable    = false

  validation {
    condition     = contains(["512Mi", "1Gi", "2Gi", "4Gi"], var.dispatch_memory)
    error_message = "dispatch_memory must be 512Mi, 1Gi, 2Gi or 4Gi. One vCPU cannot have more."
  }
}

variable "job_state_timeout" {
  description = "Timeout of job-state for one log entry, in seconds. Pub/Sub waits ten seconds longer before it delivers the entry again."
  type        = number
  default     = 60

  validation {
    condition     = var.job_state_timeout >= 30 && var.job_state_timeout <= 590 && floor(var.job_state_timeout) == var.job_state_timeout
    error_message = "job_state_timeout must be 30 to 590 whole seconds: it looks a job up in each region, and Pub/Sub waits at most 600."
  }
}

variable "max_delivery_attempts" {
  description = "Deliveries of a message before it becomes a dead letter. A delivery to a busy dispatcher counts."
  type        = number
  default     = 20

  validation {
    condition     = var.max_delivery_attempts >= 20 && var.max_delivery_attempts <= 100 && floor(var.max_delivery_attempts) == var.max_delivery_attempts
    error_message = "max_delivery_attempts must be 20 to 100: with fewer, ticks that wait for a running pass would become dead letters."
  }
}

variable "message_retention_seconds" {
  description = "Seconds for which Pub/Sub keeps ticks and log entries that cannot be delivered."
  type        = number
  default     = 86400

  validation {
    condition     = var.message_retention_seconds >= 600 && var.message_retention_seconds <= 2678400 && floor(var.message_retention_seconds) == var.message_retention_seconds
    error_message = "message_retention_seconds must be 600 (10 minutes) to 2678400 (31 days), Pub/Sub's limits."
  }
}

variable "dead_letter_retention_seconds" {
  description = "Seconds for which dead letters are kept."
  type        = number
  default     = 604800

  validation {
    condition     = var.dead_letter_retention_seconds >= 86400 && var.dead_letter_retention_seconds <= 2678400 && floor(var.dead_letter_retention_seconds) == var.dead_letter_retention_seconds
    error_message = "dead_letter_retention_seconds must be 86400 (a day, to leave time to look at them) to 2678400 (31 days, Pub/Sub's limit)."
  }
}

# Existing resources to use. The module grants the same roles on them as on its own.

variable "wandb_secret" {
  description = "An existing secret with the W&B API key, such as projects/my-project/secrets/wandb-api-key. null: one is created, without a version."
  type        = string
  default     = null

  validation {
    condition     = var.wandb_secret == null || can(regex("^projects/[^/]+/secrets/[A-Za-z0-9_-]+$", var.wandb_secret))
    error_message = "wandb_secret must be projects/PROJECT/secrets/NAME, without a version. The latest is used."
  }
}

variable "record_bucket" {
  description = "An existing bucket of the project for the record; several deployments may share it. It must not have versioning, soft delete, retention or lifecycle rules. null: one is created."
  type        = string
  default     = null

  validation {
    condition     = var.record_bucket == null || can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", var.record_bucket))
    error_message = "record_bucket must be the name of a bucket, without gs:// and without a folder."
  }
}

variable "staging_buckets" {
  description = "Existing buckets that jobs write to, by region, such as {us-central1 = \"my-bucket\"}. One is created for each missing region."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for bucket in values(var.staging_buckets) : can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", bucket))])
    error_message = "staging_buckets must contain names of buckets, without gs:// and without folders."
  }
  validation {
    condition     = length(setsubtract(keys(var.staging_buckets), length(var.job_regions) > 0 ? var.job_regions : [var.region])) == 0
    error_message = "staging_buckets names a region in which no job runs. Add it to job_regions."
  }
  validation {
    condition     = !contains(values(var.staging_buckets), coalesce(var.record_bucket, "-"))
    error_message = "record_bucket is one of staging_buckets. Jobs write there, so they could change the record. Use another bucket."
  }
}

variable "images_repository" {
  description = "An existing Artifact Registry repository for jobs' images, such as projects/my-project/locations/us/repositories/images. null: one is created."
  type        = string
  default     = null

  validation {
    condition     = var.images_repository == null || can(regex("^projects/[^/]+/locations/[^/]+/repositories/[^/]+$", var.images_repository))
    error_message = "images_repository must be projects/PROJECT/locations/LOCATION/repositories/NAME."
  }
}

variable "job_service_accounts" {
  description = "Email addresses of existing service accounts that jobs may run as."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.job_service_accounts : can(regex("^[a-z0-9-]+@[a-z0-9.-]+\\.gserviceaccount\\.com$", email))])
    error_message = "Each of job_service_accounts must be an address that ends with gserviceaccount.com, without the prefix serviceAccount:."
  }
}

variable "create_job_service_account" {
  description = "Whether to create the account NAME-jobs for jobs. null: if job_service_accounts is empty."
  type        = bool
  default     = null
}

variable "vertex_agents" {
  description = "Google's own service accounts that may pull images for jobs from images_repository. null: none if it is in the same project, where Google's own role covers it; else the project's two agents of Vertex AI, which exist after its first job."
  type        = set(string)
  default     = null

  validation {
    condition     = var.vertex_agents == null || alltrue([for email in coalesce(var.vertex_agents, []) : can(regex("^service-[0-9]+@[a-z-]+\\.iam\\.gserviceaccount\\.com$", email))])
    error_message = "Each of vertex_agents must look like service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring channels for all alerts, such as projects/my-project/notificationChannels/123. Without one, alerts are visible only in the console."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "Each of notification_channels must be projects/PROJECT/notificationChannels/ID, as shown by `gcloud beta monitoring channels list`."
  }
}

variable "vpc_connector" {
  description = "An existing Serverless VPC Access connector, such as projects/my-project/locations/us-central1/connectors/main, for a W&B server in a VPC network."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_connector == null || can(regex("^projects/[^/]+/locations/${var.region}/connectors/[^/]+$", var.vpc_connector))
    error_message = "vpc_connector must be projects/PROJECT/locations/REGION/connectors/NAME, in the region of the functions."
  }
}

variable "vpc_egress" {
  description = "Traffic through vpc_connector: PRIVATE_RANGES_ONLY, or ALL_TRAFFIC, which needs Private Google Access or a Cloud NAT."
  type        = string
  default     = "PRIVATE_RANGES_ONLY"

  validation {
    condition     = contains(["PRIVATE_RANGES_ONLY", "ALL_TRAFFIC"], var.vpc_egress)
    error_message = "vpc_egress must be PRIVATE_RANGES_ONLY or ALL_TRAFFIC."
  }
}

# Optional roles.

variable "read_job_logs" {
  description = "Whether the dispatchers may read the project's logs, which log_lines needs. null: if log_lines in vertex-launch.yaml is above 0."
  type        = bool
  default     = null
}

variable "deploy_with_cloud_build" {
  description = "Whether to create the accounts NAME-test and NAME-deploy, with which Cloud Build tests and deploys the functions."
  type        = bool
  default     = false
  nullable    = false
}

variable "create_pubsub_agent" {
  description = "Whether to run gcloud to create Pub/Sub's own service account, if it does not exist. false if gcloud is not installed where Terraform runs; README.md says what to run elsewhere."
  type        = bool
  default     = true
  nullable    = false
}

variable "wait_for_roles" {
  description = "Seconds to wait in the first apply between granting roles and building the functions, because new roles take a while to work. 0: do not wait."
  type        = number
  default     = 90
  nullable    = false

  validation {
    condition     = var.wait_for_roles >= 0 && var.wait_for_roles <= 600 && floor(var.wait_for_roles) == var.wait_for_roles
    error_message = "wait_for_roles must be 0 to 600 whole seconds."
  }
}

variable "wait_for_metrics" {
  description = "Seconds to wait between creating metrics and the alerts that watch them, because an alert on a new metric is refused for up to ten minutes. 0: do not wait."
  type        = number
  default     = 600
  nullable    = false

  validation {
    condition     = var.wait_for_metrics >= 0 && var.wait_for_metrics <= 1200 && floor(var.wait_for_metrics) == var.wait_for_metrics
    error_message = "wait_for_metrics must be 0 to 1200 whole seconds."
  }
}

variable "role_suffix" {
  description = "End of the ids of the custom roles, such as _2, for an apply 8 to 37 days after a destroy: Google then neither restores the deleted roles nor frees their ids."
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9_]{0,20}$", var.role_suffix))
    error_message = "role_suffix must have at most 20 lower-case letters, digits and underscores."
  }
}

variable "dispatch_now_ingress" {
  description = "Where dispatch-now may be called from: ALLOW_ALL, ALLOW_INTERNAL_AND_GCLB or ALLOW_INTERNAL_ONLY, for an organization that forbids ALLOW_ALL. The other functions accept internal traffic only."
  type        = string
  default     = "ALLOW_ALL"
  nullable    = false

  validation {
    condition     = contains(["ALLOW_ALL", "ALLOW_INTERNAL_AND_GCLB", "ALLOW_INTERNAL_ONLY"], var.dispatch_now_ingress)
    error_message = "dispatch_now_ingress must be ALLOW_ALL, ALLOW_INTERNAL_AND_GCLB or ALLOW_INTERNAL_ONLY."
  }
}

variable "enable_apis" {
  description = "Whether to enable the APIs. false if someone else enables them, for example because you may not."
  type        = bool
  default     = true
  nullable    = false
}
