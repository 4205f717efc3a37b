output "dispatch_now_url" {
  description = "URL that asks for a pass at once; call it with an identity token of one of the invokers."
  value       = google_cloudfunctions2_function.this["dispatch-now"].service_config[0].uri
}

output "add_key_command" {
  description = "Asks for the W&B API key and stores it. Nothing is submitted before it has run once, unless wandb_secret has a version already."
  value       = "printf 'W&B API key: ' && stty -echo && read -r key; stty echo; printf %s \"$key\" | gcloud secrets versions add ${local.secret_parts[3]} --project=${local.secret_parts[1]} --data-file=-; unset key"
}

output "call_command" {
  description = "Asks for a pass that changes nothing and shows slots, active jobs and what stands in the queues."
  value       = "curl -X POST ${google_cloudfunctions2_function.this["dispatch-now"].service_config[0].uri} -H \"Authorization: Bearer $(gcloud auth print-identity-token)\" -H 'Content-Type: application/json' -d '{\"dry_run\": true}'"
}

output "topics" {
  description = "Full names of the topics by what they carry, and of those that dead letters come to."
  value = {
    ticks         = local.topics["ticks"]
    job_logs      = local.topics["job-logs"]
    ticks_dead    = local.dead_letter_topics["ticks"]
    job_logs_dead = local.dead_letter_topics["job-logs"]
  }
}

output "service_accounts" {
  description = "E-mail addresses of the accounts, by what they are for: dispatch, now, job-state, push, build and, where it is made, jobs."
  value       = local.emails
}

output "secret" {
  description = "Full name of the secret that holds the W&B API key."
  value       = local.secret
}

output "record_bucket" {
  description = "Name of the bucket with the record, in a folder of the deployment's name."
  value       = local.record_bucket
}

output "staging_buckets" {
  description = "Buckets that jobs write to, by region."
  value       = local.staging_buckets
}

output "images_repository" {
  description = "Full name of the repository with the images that jobs run."
  value       = local.images_repository
}

output "check_environment" {
  description = "Commands that set what the functions have in their environment, for the preflight: eval them, then python -m vertex_launch check."
  value       = join("\n", [for variable, value in local.environment : "export ${variable}='${value}'"])
}
