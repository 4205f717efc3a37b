output "dispatch_now_url" {
  description = "URL that runs a pass at once. Call it with an identity token of one of the invokers."
  value       = google_cloudfunctions2_function.this["dispatch-now"].service_config[0].uri
}

output "add_key_command" {
  description = "Command that prompts for the W&B API key and stores it. No job is submitted before it has run once, unless wandb_secret already has a version."
  value       = "printf 'W&B API key: ' && stty -echo && read -r key; stty echo; printf %s \"$key\" | gcloud secrets versions add ${local.secret_parts[3]} --project=${local.secret_parts[1]} --data-file=-; unset key"
}

output "call_command" {
  description = "Command that previews a pass, which changes nothing, and shows slots, active jobs and waiting items."
  value       = "curl -X POST ${google_cloudfunctions2_function.this["dispatch-now"].service_config[0].uri} -H \"Authorization: Bearer $(gcloud auth print-identity-token)\" -H 'Content-Type: application/json' -d '{\"dry_run\": true}'"
}

output "topics" {
  description = "Full names of the topics and of their dead-letter topics."
  value = {
    ticks         = local.topics["ticks"]
    job_logs      = local.topics["job-logs"]
    ticks_dead    = local.dead_letter_topics["ticks"]
    job_logs_dead = local.dead_letter_topics["job-logs"]
  }
}

output "service_accounts" {
  description = "Email addresses of the accounts by purpose: dispatch, now, job-state, push, build and, if it is created, jobs."
  value       = local.emails
}

output "secret" {
  description = "Full name of the secret that holds the W&B API key."
  value       = local.secret
}

output "record_bucket" {
  description = "Name of the record's bucket. The record is in a folder with the deployment's name."
  value       = local.record_bucket
}

output "staging_buckets" {
  description = "Buckets that jobs write to, by region."
  value       = local.staging_buckets
}

output "images_repository" {
  description = "Full name of the repository for jobs' images."
  value       = local.images_repository
}

output "check_environment" {
  description = "Commands that set the functions' environment for the preflight: eval them, then run python -m vertex_launch check."
  value       = join("\n", [for variable, value in local.environment : "export ${variable}='${value}'"])
}
