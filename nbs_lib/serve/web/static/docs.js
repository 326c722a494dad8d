SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true,
presets: [SwaggerUIBundle.presets.apis], defaultModelsExpandDepth: 0, validatorUrl: null});
