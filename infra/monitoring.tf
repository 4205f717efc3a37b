# Metrics, alerts and the dashboard are files in the form of Google's API, which infra/deploy.sh uses as they are; here each
# field gets its Terraform name. Their only placeholder is the deployment's name.

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
  condition_kinds = ["conditionThreshold", "conditionAbsent", "conditionMatchedLog", "conditionPrometheusQueryLanguage"]
}

resource "google_logging_metric" "this" {
  for_each = local.metrics

  project          = var.project
  name             = each.value.name
  description      = try(each.value.description, null)
  filter           = each.value.filter
  disabled         = try(each.value.disabled, null)
  value_extractor  = try(each.value.valueExtractor, null)
  label_extractors = try(each.value.labelExtractors, null)

  dynamic "metric_descriptor" {
    for_each = try([each.value.metricDescriptor], [])
    content {
      metric_kind  = metric_descriptor.value.metricKind
      value_type   = metric_descriptor.value.valueType
      unit         = try(metric_descriptor.value.unit, null)
      display_name = try(metric_descriptor.value.displayName, null)

      dynamic "labels" {
        for_each = try(metric_descriptor.value.labels, [])
        content {
          key         = labels.value.key
          value_type  = try(labels.value.valueType, null)
          description = try(labels.value.description, null)
        }
      }
    }
  }

  dynamic "bucket_options" {
    for_each = try([each.value.bucketOptions], [])
    content {
      dynamic "explicit_buckets" {
        for_each = try([bucket_options.value.explicitBuckets], [])
        content {
          bounds = explicit_buckets.value.bounds
        }
      }
      dynamic "exponential_buckets" {
        for_each = try([bucket_options.value.exponentialBuckets], [])
        content {
          num_finite_buckets = exponential_buckets.value.numFiniteBuckets
          growth_factor      = exponential_buckets.value.growthFactor
          scale              = exponential_buckets.value.scale
        }
      }
      dynamic "linear_buckets" {
        for_each = try([bucket_options.value.linearBuckets], [])
        content {
          num_finite_buckets = linear_buckets.value.numFiniteBuckets
          width              = linear_buckets.value.width
          offset             = linear_buckets.value.offset
        }
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
  enabled               = try(each.value.enabled, null)
  severity              = try(each.value.severity, null)
  user_labels           = try(each.value.userLabels, null)
  notification_channels = var.notification_channels

  dynamic "documentation" {
    for_each = try([each.value.documentation], [])
    content {
      content   = try(documentation.value.content, null)
      mime_type = try(documentation.value.mimeType, null)
      subject   = try(documentation.value.subject, null)

      dynamic "links" {
        for_each = try(documentation.value.links, [])
        content {
          display_name = try(links.value.displayName, null)
          url          = try(links.value.url, null)
        }
      }
    }
  }

  dynamic "alert_strategy" {
    for_each = try([each.value.alertStrategy], [])
    content {
      auto_close           = try(alert_strategy.value.autoClose, null)
      notification_prompts = try(alert_strategy.value.notificationPrompts, null)

      dynamic "notification_rate_limit" {
        for_each = try([alert_strategy.value.notificationRateLimit], [])
        content {
          period = try(notification_rate_limit.value.period, null)
        }
      }
    }
  }

  dynamic "conditions" {
    for_each = each.value.conditions
    content {
      display_name = conditions.value.displayName

      dynamic "condition_threshold" {
        for_each = try([conditions.value.conditionThreshold], [])
        content {
          filter                  = condition_threshold.value.filter
          comparison              = condition_threshold.value.comparison
          threshold_value         = try(condition_threshold.value.thresholdValue, null)
          duration                = condition_threshold.value.duration
          denominator_filter      = try(condition_threshold.value.denominatorFilter, null)
          evaluation_missing_data = try(condition_threshold.value.evaluationMissingData, null)

          dynamic "aggregations" {
            for_each = try(condition_threshold.value.aggregations, [])
            content {
              alignment_period     = try(aggregations.value.alignmentPeriod, null)
              per_series_aligner   = try(aggregations.value.perSeriesAligner, null)
              cross_series_reducer = try(aggregations.value.crossSeriesReducer, null)
              group_by_fields      = try(aggregations.value.groupByFields, null)
            }
          }
          dynamic "denominator_aggregations" {
            for_each = try(condition_threshold.value.denominatorAggregations, [])
            content {
              alignment_period     = try(denominator_aggregations.value.alignmentPeriod, null)
              per_series_aligner   = try(denominator_aggregations.value.perSeriesAligner, null)
              cross_series_reducer = try(denominator_aggregations.value.crossSeriesReducer, null)
              group_by_fields      = try(denominator_aggregations.value.groupByFields, null)
            }
          }
          dynamic "trigger" {
            for_each = try([condition_threshold.value.trigger], [])
            content {
              count   = try(trigger.value.count, null)
              percent = try(trigger.value.percent, null)
            }
          }
        }
      }

      dynamic "condition_absent" {
        for_each = try([conditions.value.conditionAbsent], [])
        content {
          filter   = condition_absent.value.filter
          duration = condition_absent.value.duration

          dynamic "aggregations" {
            for_each = try(condition_absent.value.aggregations, [])
            content {
              alignment_period     = try(aggregations.value.alignmentPeriod, null)
              per_series_aligner   = try(aggregations.value.perSeriesAligner, null)
              cross_series_reducer = try(aggregations.value.crossSeriesReducer, null)
              group_by_fields      = try(aggregations.value.groupByFields, null)
            }
          }
          dynamic "trigger" {
            for_each = try([condition_absent.value.trigger], [])
            content {
              count   = try(trigger.value.count, null)
              percent = try(trigger.value.percent, null)
            }
          }
        }
      }

      dynamic "condition_matched_log" {
        for_each = try([conditions.value.conditionMatchedLog], [])
        content {
          filter           = condition_matched_log.value.filter
          label_extractors = try(condition_matched_log.value.labelExtractors, null)
        }
      }

      dynamic "condition_prometheus_query_language" {
        for_each = try([conditions.value.conditionPrometheusQueryLanguage], [])
        content {
          query                     = condition_prometheus_query_language.value.query
          duration                  = try(condition_prometheus_query_language.value.duration, null)
          evaluation_interval       = try(condition_prometheus_query_language.value.evaluationInterval, null)
          labels                    = try(condition_prometheus_query_language.value.labels, null)
          rule_group                = try(condition_prometheus_query_language.value.ruleGroup, null)
          alert_rule                = try(condition_prometheus_query_language.value.alertRule, null)
          disable_metric_validation = try(condition_prometheus_query_language.value.disableMetricValidation, null)
        }
      }
    }
  }

  lifecycle {
    precondition {
      condition     = alltrue([for condition in each.value.conditions : length(setintersection(keys(condition), local.condition_kinds)) == 1])
      error_message = "Each condition of alerts/${each.key}.yaml has one of ${join(", ", local.condition_kinds)}; other kinds have no block in monitoring.tf yet."
    }
  }

  # A metric made a moment ago is not known to Cloud Monitoring yet, which refuses alerts on it. The functions take minutes to
  # build; alerts wait for them so as to come late enough.
  depends_on = [google_logging_metric.this, google_cloudfunctions2_function.this]
}

resource "google_monitoring_dashboard" "this" {
  for_each = fileset(local.monitoring, "dashboard.json")

  project        = var.project
  dashboard_json = templatefile("${local.monitoring}/${each.key}", { name = var.name })

  depends_on = [google_project_service.this]
}
