# Metrics, alerts and the dashboard are files in the form of Google's API, which infra/deploy.sh uses directly. Here each field
# gets its Terraform name. Their only placeholder is the deployment's name.

locals {
  monitoring = "${path.module}/monitoring"
  metrics = {
    for file in fileset("${local.monitoring}/metrics", "*.yaml") : trimsuffix(file, ".yaml") =>
    yamldecode(templatefile("${local.monitoring}/metrics/${file}", { name = var.name }))
  }
  alerts = {
    for file in fileset("${local.monitoring}/alerts", "*.yaml") : trimsuffix(file, ".yaml") =>
    yamldecode(templatefile("${local.monitoring}/alerts/${file}", { name = var.name }))
  }
}

resource "google_logging_metric" "this" {
  for_each = local.metrics

  project         = var.project
  name            = each.value.name
  description     = each.value.description
  filter          = each.value.filter
  value_extractor = try(each.value.valueExtractor, null)

  metric_descriptor {
    metric_kind = each.value.metricDescriptor.metricKind
    value_type  = each.value.metricDescriptor.valueType
    unit        = each.value.metricDescriptor.unit
  }

  dynamic "bucket_options" {
    for_each = try([each.value.bucketOptions], [])
    content {
      exponential_buckets {
        num_finite_buckets = bucket_options.value.exponentialBuckets.numFiniteBuckets
        growth_factor      = bucket_options.value.exponentialBuckets.growthFactor
        scale              = bucket_options.value.exponentialBuckets.scale
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "this" {
  for_each = local.alerts

  project               = var.project
  display_name          = each.value.displayName
  combiner              = each.value.combiner
  severity              = each.value.severity
  user_labels           = each.value.userLabels
  notification_channels = var.notification_channels

  documentation {
    content   = each.value.documentation.content
    mime_type = each.value.documentation.mimeType
  }

  alert_strategy {
    auto_close = each.value.alertStrategy.autoClose
  }

  dynamic "conditions" {
    for_each = each.value.conditions
    content {
      display_name = conditions.value.displayName

      condition_threshold {
        filter                  = conditions.value.conditionThreshold.filter
        comparison              = conditions.value.conditionThreshold.comparison
        threshold_value         = conditions.value.conditionThreshold.thresholdValue
        duration                = conditions.value.conditionThreshold.duration
        evaluation_missing_data = try(conditions.value.conditionThreshold.evaluationMissingData, null)

        dynamic "aggregations" {
          for_each = conditions.value.conditionThreshold.aggregations
          content {
            alignment_period     = aggregations.value.alignmentPeriod
            per_series_aligner   = aggregations.value.perSeriesAligner
            cross_series_reducer = aggregations.value.crossSeriesReducer
            group_by_fields      = try(aggregations.value.groupByFields, null)
          }
        }
      }
    }
  }

  depends_on = [terraform_data.metrics_appear, google_logging_metric.this, google_cloudfunctions2_function.this]
}

# Cloud Monitoring refuses alerts on a metric that was created a moment ago, for up to ten minutes. They pass while the functions are
# built. After an update this waits only for new metrics.
resource "terraform_data" "metrics_appear" {
  count = var.wait_for_metrics > 0 ? 1 : 0

  triggers_replace = keys(local.metrics)
  input            = "sleep ${var.wait_for_metrics}"

  provisioner "local-exec" {
    command = self.input
  }

  depends_on = [google_logging_metric.this]
}

resource "google_monitoring_dashboard" "this" {
  for_each = fileset(local.monitoring, "dashboard.json")

  project        = var.project
  dashboard_json = templatefile("${local.monitoring}/${each.key}", { name = var.name })

  depends_on = [google_project_service.this]
}
