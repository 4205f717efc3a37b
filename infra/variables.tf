# What has to be said.

variable "project" {
  description = "Id of the project that everything is made in and that jobs run in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project's id has 6 to 30 small letters, digits and hyphens, and begins with a letter. Write the id, neither the number nor the name."
  }
}

variable "region" {
  description = "Region of the functions, the scheduler and the buckets, as in us-central1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like us-central1; a zone (us-central1-a) or a multi-region (us) cannot be used."
  }
}

# This deployment.

variable "name" {
  description = "Prefix of everything that is made, and the deployment's name on its jobs' labels and in W&B. Two deployments in one project have two names."
  type        = string
  default     = "vertex-launch"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,15}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 17 small letters, digits and hyphens, begins with a letter and does not end in a hyphen; the ids of service accounts, which begin with it, end at 30."
  }
}

variable "job_regions" {
  description = "Regions in which jobs may run; the first is the default. Empty: only var.region."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for region in var.job_regions : can(regex("^[a-z]+-[a-z]+[0-9]+$", region))])
    error_message = "Each of job_regions looks like us-central1."
  }
  validation {
    condition     = length(distinct(var.job_regions)) == length(var.job_regions)
    error_message = "Name each region once in job_regions."
  }
}

variable "invokers" {
  description = "Who may call dispatch-now: members as user:ada@example.com, group:ml@example.com, serviceAccount:ci@my-project.iam.gserviceaccount.com. Nobody else may."
  type        = set(string)
  default     = []

  validation {
    condition = alltrue([
      for member in var.invokers : can(regex("^(user|group|serviceAccount|principal|principalSet):.+$", member))
    ])
    error_message = "Each of invokers is user:…, group:…, serviceAccount:…, principal:… or principalSet:…. allUsers and allAuthenticatedUsers would let anybody start jobs at your cost, domain:… everybody at your company; name who may."
  }
}

variable "schedule" {
  description = "When a pass is asked for besides jobs' ends: cron, in UTC. A new item waits so long at most. Slower than every five minutes, the alert about missing passes has to be changed with it."
  type        = string
  default     = "* * * * *"

  validation {
    condition     = can(regex("^[^ ]+( [^ ]+){4}$", var.schedule))
    error_message = "The schedule has the five fields of cron, as in */5 * * * *."
  }
}

variable "wandb_base_url" {
  description = "A self-hosted W&B server, as in https://wandb.example.com. null: what vertex-launch.yaml says, by default https://api.wandb.ai."
  type        = string
  default     = null

  validation {
    condition     = var.wandb_base_url == null || can(regex("^(https://[^/ ]+|http://(127\\.0\\.0\\.1|localhost)(:[0-9]+)?)(/[^ ]*)?$", var.wandb_base_url))
    error_message = "The server's URL begins with https://: the API key is sent there."
  }
}

variable "labels" {
  description = "Labels for everything that can have them, as {team = \"ml\"}."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels have at most 63 small letters, digits, hyphens and underscores; keys begin with a letter."
  }
}

# The code.

variable "launch_config" {
  description = "Path of the launch-config.yaml to deploy. null: the checkout's."
  type        = string
  default     = null

  validation {
    condition     = var.launch_config == null || try(fileexists(var.launch_config), false)
    error_message = "There is no file at the path launch_config; \"$${path.module}/launch-config.yaml\" is the one beside the calling module."
  }
}

variable "vertex_launch_config" {
  description = "Path of the vertex-launch.yaml to deploy. null: the checkout's. Project, regions, buckets, secret and topic are set here and win over the file."
  type        = string
  default     = null

  validation {
    condition     = var.vertex_launch_config == null || try(fileexists(var.vertex_launch_config), false)
    error_message = "There is no file at the path vertex_launch_config; \"$${path.module}/vertex-launch.yaml\" is the one beside the calling module."
  }
}

variable "source_object" {
  description = "A zip in a bucket to deploy instead of this checkout, both yaml files in it: {bucket, object}, and generation if it is overwritten in place. vertex_launch_config should still be the vertex-launch.yaml in it."
  type = object({
    bucket     = string
    object     = string
    generation = optional(number)
  })
  default = null

  validation {
    condition     = var.source_object == null || var.launch_config == null
    error_message = "launch_config has no effect on a source_object, which brings its own; leave one of the two out."
  }
}

# Limits. The defaults fit the defaults of vertex-launch.yaml.

variable "dispatch_timeout" {
  description = "Seconds that a pass may take. Pub/Sub waits ten seconds longer before it delivers a tick again."
  type        = number
  default     = 120

  validation {
    condition     = var.dispatch_timeout >= 75 && var.dispatch_timeout <= 590 && floor(var.dispatch_timeout) == var.dispatch_timeout
    error_message = "dispatch_timeout is 75 to 590 whole seconds: a pass with its last create and margin takes up to 75, and Pub/Sub waits for 600 at most."
  }
}

variable "dispatch_memory" {
  description = "Memory of each function that runs passes: 512Mi, 1Gi, 2Gi or 4Gi. 1Gi holds some hundred jobs made from W&B job artifacts; where items bring only images, 512Mi do."
  type        = string
  default     = "1Gi"
  nullable    = false

  validation {
    condition     = contains(["512Mi", "1Gi", "2Gi", "4Gi"], var.dispatch_memory)
    error_message = "dispatch_memory is 512Mi, 1Gi, 2Gi or 4Gi; one vCPU can have no more."
  }
}

variable "job_state_timeout" {
  description = "Seconds that job-state may take for one log entry. Pub/Sub waits ten seconds longer before it delivers the entry again."
  type        = number
  default     = 60

  validation {
    condition     = var.job_state_timeout >= 30 && var.job_state_timeout <= 590 && floor(var.job_state_timeout) == var.job_state_timeout
    error_message = "job_state_timeout is 30 to 590 whole seconds: it looks a job up in each region, and Pub/Sub waits for 600 at most."
  }
}

variable "max_delivery_attempts" {
  description = "How often Pub/Sub tries a message before it becomes a dead letter. A busy dispatcher counts as an attempt."
  type        = number
  default     = 20

  validation {
    condition     = var.max_delivery_attempts >= 20 && var.max_delivery_attempts <= 100 && floor(var.max_delivery_attempts) == var.max_delivery_attempts
    error_message = "max_delivery_attempts is 20 to 100: with fewer, ticks that only wait for a running pass would become dead letters."
  }
}

variable "message_retention_seconds" {
  description = "How long Pub/Sub keeps ticks and log entries that cannot be delivered."
  type        = number
  default     = 86400

  validation {
    condition     = var.message_retention_seconds >= 600 && var.message_retention_seconds <= 2678400 && floor(var.message_retention_seconds) == var.message_retention_seconds
    error_message = "message_retention_seconds is 600 (10 minutes) to 2678400 (31 days), Pub/Sub's limits."
  }
}

variable "dead_letter_retention_seconds" {
  description = "How long dead letters are kept for you to look at."
  type        = number
  default     = 604800

  validation {
    condition     = var.dead_letter_retention_seconds >= 86400 && var.dead_letter_retention_seconds <= 2678400 && floor(var.dead_letter_retention_seconds) == var.dead_letter_retention_seconds
    error_message = "dead_letter_retention_seconds is 86400 (a day, so that somebody can look) to 2678400 (31 days, Pub/Sub's limit)."
  }
}

# What exists already and is to be used. Rights on it are granted as on what is made here.

variable "wandb_secret" {
  description = "An existing secret that holds the W&B API key, as projects/my-project/secrets/wandb-api-key. null: one is made, without a version."
  type        = string
  default     = null

  validation {
    condition     = var.wandb_secret == null || can(regex("^projects/[^/]+/secrets/[A-Za-z0-9_-]+$", var.wandb_secret))
    error_message = "wandb_secret is projects/PROJECT/secrets/NAME, without a version; the latest is used."
  }
}

variable "record_bucket" {
  description = "An existing bucket of the project for the record, which several deployments may share. It must have no versioning, no soft delete, no retention and no lifecycle rule. null: one is made."
  type        = string
  default     = null

  validation {
    condition     = var.record_bucket == null || can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", var.record_bucket))
    error_message = "record_bucket is the name of a bucket, without gs:// and without a folder."
  }
}

variable "staging_buckets" {
  description = "Existing buckets that jobs write to, by region, as {us-central1 = \"my-bucket\"}. A region that is missing here gets a new one."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for bucket in values(var.staging_buckets) : can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", bucket))])
    error_message = "staging_buckets has names of buckets, without gs:// and without folders."
  }
  validation {
    condition     = length(setsubtract(keys(var.staging_buckets), length(var.job_regions) > 0 ? var.job_regions : [var.region])) == 0
    error_message = "staging_buckets names a region that no job runs in; add it to job_regions."
  }
}

variable "images_repository" {
  description = "An existing Artifact Registry repository with the images that jobs run, as projects/my-project/locations/us/repositories/images. null: one is made."
  type        = string
  default     = null

  validation {
    condition     = var.images_repository == null || can(regex("^projects/[^/]+/locations/[^/]+/repositories/[^/]+$", var.images_repository))
    error_message = "images_repository is projects/PROJECT/locations/LOCATION/repositories/NAME."
  }
}

variable "job_service_accounts" {
  description = "E-mail addresses of existing service accounts that jobs may run as."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.job_service_accounts : can(regex("^[a-z0-9-]+@[a-z0-9.-]+\\.gserviceaccount\\.com$", email))])
    error_message = "Each of job_service_accounts is an address that ends in gserviceaccount.com, without serviceAccount: before it."
  }
}

variable "create_job_service_account" {
  description = "Whether to make the account NAME-jobs for jobs to run as. null: where job_service_accounts is empty."
  type        = bool
  default     = null
}

variable "vertex_agents" {
  description = "Google's own service accounts that pull images for jobs. null: the project's two agents of Vertex AI. Google makes them when Vertex AI is first used; [] grants nothing, and they read the project's repositories by the role that Google gives them."
  type        = set(string)
  default     = null

  validation {
    condition     = var.vertex_agents == null || alltrue([for email in coalesce(var.vertex_agents, []) : can(regex("^service-[0-9]+@[a-z-]+\\.iam\\.gserviceaccount\\.com$", email))])
    error_message = "Each of vertex_agents looks like service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring channels that every alert goes to, as projects/my-project/notificationChannels/123. Without one, alerts are only to be seen in the console."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "Each of notification_channels is projects/PROJECT/notificationChannels/ID, as `gcloud beta monitoring channels list` shows it."
  }
}

variable "vpc_connector" {
  description = "An existing Serverless VPC Access connector, as projects/my-project/locations/us-central1/connectors/main, for a W&B server that only a VPC network reaches."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_connector == null || can(regex("^projects/[^/]+/locations/${var.region}/connectors/[^/]+$", var.vpc_connector))
    error_message = "vpc_connector is projects/PROJECT/locations/REGION/connectors/NAME, in the region of the functions."
  }
}

variable "vpc_egress" {
  description = "What goes through vpc_connector: PRIVATE_RANGES_ONLY, or ALL_TRAFFIC, which needs Private Google Access or a Cloud NAT."
  type        = string
  default     = "PRIVATE_RANGES_ONLY"

  validation {
    condition     = contains(["PRIVATE_RANGES_ONLY", "ALL_TRAFFIC"], var.vpc_egress)
    error_message = "vpc_egress is PRIVATE_RANGES_ONLY or ALL_TRAFFIC."
  }
}

# Rights that not everybody needs.

variable "read_job_logs" {
  description = "Whether the dispatchers may read the project's logs, which log_lines needs. null: where log_lines in vertex-launch.yaml is above 0."
  type        = bool
  default     = null
}

variable "deploy_with_cloud_build" {
  description = "Whether the build account may also deploy the functions, as cloudbuild.yaml does."
  type        = bool
  default     = false
  nullable    = false
}

variable "enable_apis" {
  description = "Whether to enable the APIs. false where somebody else does and you may not."
  type        = bool
  default     = true
  nullable    = false
}
